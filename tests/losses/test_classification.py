import math

import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

import peftkit
from peftkit.config.task_sections import LossSettings, TeacherSettings
from peftkit.errors import ConfigError, DataError
from peftkit.labels import IGNORED
from peftkit.losses.classification import (
    ClassificationLoss,
    RegressionLoss,
    balanced_weights,
    classification_loss,
    named_weights,
    regression_loss,
)
from peftkit.losses.regularization import Adversarial, RDrop
from tests.architectures import ARCHITECTURES

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


class Linear(nn.Module):
    """A model as those of transformers, of one linear layer."""

    def __init__(self, classes=4, dtype=torch.float32):
        super().__init__()
        self.linear = nn.Linear(5, classes, dtype=dtype)

    def forward(self, features):
        return SequenceClassifierOutput(logits=self.linear(features))


def texts(count=8, seed=0, classes=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return {"features": torch.randn(count, 5, generator=generator).to(dtype) * 2, "labels": labels}


def tagged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (3, 6), generator=generator)
    labels[:, 0] = IGNORED
    labels[1, 3:] = IGNORED
    return {"features": torch.randn(3, 6, 5, generator=generator) * 2, "labels": labels}


def with_teacher(batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(*batch["labels"].shape, 4, generator=generator).mul(2).softmax(-1)
    return batch | {"teacher": teacher}


def reference(batch, logits, weights=None, smoothing=0.0, gamma=0.0, v=0.0, temperature=1.0):
    """The sum written out item by item in float64."""
    total = 0.0
    classes = logits.shape[-1]
    labels = batch["labels"].flatten().tolist()
    rows = logits.detach().double().reshape(-1, classes).tolist()
    teacher = (
        batch["teacher"].double().reshape(-1, classes).tolist()
        if "teacher" in batch
        else [[0.0] * classes] * len(rows)
    )

    def softmax(values):
        largest = max(values)
        exponentials = [math.exp(value - largest) for value in values]
        return [each / sum(exponentials) for each in exponentials]

    for label, z, q in zip(labels, rows, teacher, strict=True):
        p = softmax(z)
        has_label, has_teacher = label != IGNORED, sum(q) > 0
        hard = 0.0
        if has_label:
            hard = -(1 - smoothing) * math.log(p[label]) - smoothing / classes * sum(
                math.log(each) for each in p
            )
            hard *= (1 - p[label]) ** gamma * (1.0 if weights is None else float(weights[label]))
        share = 0.0 if not has_teacher else v if has_label else 1.0
        soft = 0.0
        if has_teacher:
            powers = [each ** (1 / temperature) for each in q]
            q_t = [each / sum(powers) for each in powers]
            p_t = softmax([each / temperature for each in z])
            soft = temperature**2 * sum(
                a * math.log(a / b) for a, b in zip(q_t, p_t, strict=True) if a > 0
            )
        total += (1 - share) * hard + share * soft
    return total


# against what is written out, and against torch


@pytest.mark.parametrize("make", [texts, tagged])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"smoothing": 0.1},
        {"gamma": 2.0},
        {"gamma": 0.5},
        {"weights": WEIGHTS},
        {"weights": WEIGHTS, "smoothing": 0.2, "gamma": 1.5},
        {"v": 0.3, "temperature": 2.0},
        {"v": 1.0},
        {"weights": WEIGHTS, "smoothing": 0.2, "gamma": 1.5, "v": 0.7, "temperature": 0.5},
    ],
)
def test_the_loss_is_the_sum_that_is_written_out(make, options):
    model, batch = Linear(), make()
    if "v" in options:
        batch = with_teacher(batch)
        flat = batch["teacher"].view(-1, 4)
        flat[1], flat[2] = 0.0, torch.tensor([0.0, 0.0, 1.0, 0.0])
        batch["labels"].view(-1)[2:4] = IGNORED
    loss = ClassificationLoss(
        options.get("weights"),
        options.get("smoothing", 0.0),
        options.get("gamma", 0.0),
        options.get("v", 0.0),
        options.get("temperature", 1.0),
    )
    expected = reference(batch, model(batch["features"]).logits, **options)
    assert loss.sum(model, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{"class_weights": WEIGHTS}, {"label_smoothing": 0.3}, {}])
def test_it_is_torchs_cross_entropy_where_that_has_the_options(options):
    model, batch = Linear(), tagged()
    theirs = {
        "weight" if name == "class_weights" else name: value for name, value in options.items()
    }
    logits = model(batch["features"]).logits
    expected = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="sum", **theirs)
    assert ClassificationLoss(**options).sum(model, batch).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_the_gradient_is_that_of_the_formula():
    loss = ClassificationLoss(WEIGHTS.double(), 0.1, 1.5, teacher_weight=0.4, temperature=2.0)
    batch = with_teacher(texts())
    batch["labels"][0] = IGNORED
    batch["teacher"] = batch["teacher"].double()
    logits = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss.sum_from(z, batch), logits)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_has_a_gradient_where_an_item_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = ClassificationLoss(focal_gamma=gamma).sum_from(logits, {"labels": torch.tensor([0, 0])})
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert torch.equal(logits.grad, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_focal_loss_is_exact_for_confident_items():
    logits = torch.tensor([[12.0, 0.0]])
    loss = ClassificationLoss(focal_gamma=2.0).sum_from(logits, {"labels": torch.tensor([0])})
    expected = reference({"labels": torch.tensor([0])}, logits, gamma=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_teacher_that_agrees_costs_nothing_at_any_temperature():
    logits = torch.randn(8, 4)
    batch = texts() | {"teacher": logits.softmax(-1)}
    for temperature in (0.5, 1.0, 4.0):
        loss = ClassificationLoss(teacher_weight=1.0, temperature=temperature).sum_from(
            logits, batch
        )
        assert abs(float(loss)) < 1e-5


def test_without_a_label_only_the_teacher_is_learned_from_and_without_either_nothing():
    model, batch = Linear(), with_teacher(texts())
    batch["labels"] = torch.full((8,), IGNORED)
    batch["teacher"][5:] = 0.0
    loss = ClassificationLoss(class_weights=WEIGHTS, focal_gamma=2.0, teacher_weight=0.0)
    assert loss.count(batch) == 5
    log_p = model(batch["features"]).logits.log_softmax(-1)
    expected = F.kl_div(log_p[:5], batch["teacher"][:5], reduction="sum")
    assert loss.sum(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


# how a step is cut, and batches that count for nothing


@pytest.mark.parametrize(
    "loss", [ClassificationLoss(WEIGHTS, 0.1, 2.0, 0.5, 2.0), RegressionLoss()]
)
def test_the_mean_does_not_depend_on_how_a_step_is_cut(loss):
    is_regression = isinstance(loss, RegressionLoss)
    model, batch = Linear(1 if is_regression else 4), with_teacher(texts())
    if is_regression:
        batch = {"features": batch["features"], "labels": torch.randn(8)}
    batch["labels"][2] = IGNORED
    means = []
    for size in (8, 4, 1):
        parts = [
            {name: value[i : i + size] for name, value in batch.items()} for i in range(0, 8, size)
        ]
        count = sum(map(loss.count, parts))
        model.zero_grad()
        for part in parts:
            (loss.sum(model, part) / count).backward()
        means.append(model.linear.weight.grad.clone())
    assert torch.allclose(means[0], means[1], atol=1e-6)
    assert torch.allclose(means[0], means[2], atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [ClassificationLoss(), ClassificationLoss(WEIGHTS, 0.1, 0.5, 0.5, 2.0), RegressionLoss()],
)
@pytest.mark.parametrize("has_teacher", [False, True])
def test_a_batch_without_an_item_gives_a_zero_with_a_gradient(loss, has_teacher):
    model, batch = Linear(1 if isinstance(loss, RegressionLoss) else 4), texts()
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    if has_teacher and isinstance(loss, ClassificationLoss):
        batch["teacher"] = torch.zeros(8, 4)
    assert loss.count(batch) == 0
    result = loss.sum(model, batch)
    result.backward()
    assert result.item() == 0.0
    assert torch.equal(model.linear.weight.grad, torch.zeros_like(model.linear.weight))


def test_sixteen_bit_logits_are_computed_in_float32():
    model, batch = Linear(dtype=torch.bfloat16), texts(dtype=torch.bfloat16)
    logits = model(batch["features"]).logits
    loss = ClassificationLoss(WEIGHTS, 0.1, 2.0).sum(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(batch, logits, WEIGHTS, 0.1, 2.0), rel=1e-5)


# real models


@pytest.mark.parametrize("name", ["bert", "modernbert", "bert-token", "deberta-v2-token", "vit"])
def test_models_of_transformers_are_not_shown_the_targets(name):
    architecture = ARCHITECTURES[name]
    model = peftkit.attach(architecture.model(), peftkit.LoraConfig(r=2)).eval()
    batch = architecture.batch()
    plain = model(**batch).loss.item()
    loss = ClassificationLoss()
    assert loss.sum(model, batch).item() / loss.count(batch) == pytest.approx(plain, rel=1e-5)
    taught = batch | {"teacher": torch.full((*batch["labels"].shape, 3), 1 / 3)}
    ClassificationLoss(teacher_weight=0.5).sum(model, taught).backward()


def test_regression_is_the_squared_error():
    model, batch = Linear(1), texts()
    batch["labels"] = torch.tensor([0.5, -1.0, 3.0, -100.0, 0.0, 1.0, 2.0, -100.0])
    loss = RegressionLoss()
    assert loss.count(batch) == 6
    kept = batch["labels"] != IGNORED
    expected = (model(batch["features"]).logits[:, 0] - batch["labels"]).square()[kept].sum()
    assert torch.allclose(loss.sum(model, batch), expected)
    with pytest.raises(ConfigError, match="num_labels=1"):
        loss.sum(Linear(2), batch)


# weights and settings


def test_balanced_weights_are_those_of_scikit_learn():
    labels = [0] * 7 + [1] * 2 + [3] * 11
    weights = balanced_weights([7, 2, 0, 11])
    theirs = compute_class_weight("balanced", classes=torch.tensor([0, 1, 3]).numpy(), y=labels)
    assert weights.tolist() == pytest.approx([theirs[0], theirs[1], 1.0, theirs[2]])
    assert float(weights[labels].mean()) == pytest.approx(1.0)
    with pytest.raises(DataError, match="no label"):
        balanced_weights([0, 0])


def test_weights_are_named_by_label():
    assert named_weights({"spam": 3.0}, ["ham", "spam"]).tolist() == [1.0, 3.0]
    with pytest.raises(ConfigError, match=r"names 'span'.*did you mean 'spam'"):
        named_weights({"span": 3.0}, ["ham", "spam"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"teacher_weight": 1.5}, "teacher_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"class_weights": torch.tensor([1.0, 0.0])}, "class_weights"),
    ],
)
def test_values_out_of_bounds_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationLoss(**values)


def test_shapes_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="do not go together"):
        ClassificationLoss().sum(Linear(), tagged() | {"labels": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(ConfigError, match="4 class weights for 3 classes"):
        ClassificationLoss(WEIGHTS).sum(Linear(3), texts(classes=3))


def test_settings_make_the_loss():
    labels, counts = ["a", "b"], [3, 1]
    plain = classification_loss(LossSettings(), labels, counts)
    assert isinstance(plain, ClassificationLoss)
    assert (plain.class_weights, plain.teacher_weight) == (None, 0.0)
    weighted = classification_loss(
        LossSettings(class_weights="balanced", focal_gamma=2.0),
        labels,
        counts,
        TeacherSettings(runs=["x"], weight=0.3),
    )
    assert weighted.class_weights.tolist() == pytest.approx([2 / 3, 2.0])
    assert (weighted.focal_gamma, weighted.teacher_weight) == (2.0, 0.3)
    both = LossSettings(
        class_weights={"b": 5}, r_drop=0.5, adversarial="pgd", adversarial_radius=0.1
    )
    outer = classification_loss(both, labels, counts)
    assert isinstance(outer, Adversarial)
    assert (outer.kind, outer.radius, outer.steps) == ("pgd", 0.1, 3)
    assert isinstance(outer.loss, RDrop)
    assert outer.loss.loss.class_weights.tolist() == [1.0, 5.0]
    assert isinstance(regression_loss(LossSettings(adversarial="fgm")).loss, RegressionLoss)
    with pytest.raises(ConfigError, match=r"loss\.r_drop is for classes"):
        regression_loss(LossSettings(r_drop=1.0))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (LossSettings, {"class_weights": {"a": 0}}, "greater than 0"),
        (LossSettings, {"class_weights": "balance"}, "balanced"),
        (LossSettings, {"label_smoothing": 1.0}, "less than 1"),
        (LossSettings, {"adversarial_radius": 0.5}, "does nothing without"),
        (LossSettings, {"adversarial": "fgm", "adversarial_steps": 5}, "does nothing unless"),
        (TeacherSettings, {"unlabelled": "rows.jsonl"}, "needs a teacher"),
        (TeacherSettings, {"runs": ["x"], "min_confidence": 0.9}, "does nothing without"),
        (TeacherSettings, {"runs": ["x"], "weight": 0.0}, "teach nothing"),
        (TeacherSettings, {"runs": ["x"], "temperature": 0.0}, "greater than 0"),
    ],
)
def test_settings_out_of_bounds_or_without_effect_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
