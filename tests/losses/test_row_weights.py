"""A row of weight w counts as w rows: in values, in gradients, and however a step is cut."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import SequenceClassifierOutput

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.data.packing import PackBatch, PadPacks, pack_examples
from peftkit.data.padding import PadRight
from peftkit.data.row_weights import add_weights, counted_weight, describe_weights, row_weight
from peftkit.data.supervised_tokens import Example
from peftkit.errors import ConfigError, DataError
from peftkit.labels import IGNORED
from peftkit.losses.base import CausalLMLoss, ModelLoss
from peftkit.losses.classification import ClassificationLoss, RegressionLoss
from peftkit.losses.regularization import Adversarial, RDrop
from peftkit.training.accelerator import make_accelerator
from peftkit.training.callbacks import Callback
from peftkit.training.evaluation import evaluate
from peftkit.training.loop import Training
from tests.architectures import ARCHITECTURES
from tests.recipes.jobs import config_values, rows_of, run, write_jsonl
from tests.training.job import ragged_examples

WEIGHTS = (2.0, 1.0, 0.25, 3.0, 1.0, 1.5)


def weighted_examples():
    examples = ragged_examples(len(WEIGHTS), vocabulary=90)
    return [
        Example(example.input_ids, example.labels, weight)
        for example, weight in zip(examples, WEIGHTS, strict=True)
    ]


def language_model(llama_dir, lean=True):
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32)
    model = peftkit.attach(backbone, peftkit.LoraConfig(r=4), lean=lean)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def without_dropout(model):
    for module in model.modules():
        for name in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def by_hand(llama_dir, examples):
    """Loss and gradients of the trained parameters, one row after the other in float64."""
    model = language_model(llama_dir, lean=False).double()
    total = torch.zeros((), dtype=torch.float64)
    count = 0.0
    for example in examples:
        ids, labels = torch.tensor(example.input_ids), torch.tensor(example.labels)
        logits = model(input_ids=ids[None]).logits[0]
        log_probs = logits.log_softmax(-1)
        for place in range(1, len(ids)):
            if labels[place] != IGNORED:
                total = total - example.weight * log_probs[place - 1, labels[place]]
                count += example.weight
    mean = total / count
    return mean.item(), gradients_of(model, mean)


def assert_close(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert (value.double() - expected[name]).norm() < tolerance * expected[name].norm(), name


COLLATE = {
    "padded": PadRight(0),
    "packed": lambda examples: PadPacks(0)(pack_examples(examples, 60)[:]),
    "batch": PackBatch(0),
}


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("collate", COLLATE)
def test_the_loss_of_a_language_model_and_its_gradient_are_those_by_hand(llama_dir, lean, collate):
    examples = weighted_examples()
    model, loss = language_model(llama_dir, lean), CausalLMLoss()
    batch = COLLATE[collate](examples)
    count = sum(
        (example.supervised) * weight for example, weight in zip(examples, WEIGHTS, strict=True)
    )
    assert loss.count(batch) == pytest.approx(count)
    mean = loss.sum(model.train(), batch) / loss.count(batch)
    value, gradients = by_hand(llama_dir, examples)
    assert mean.item() == pytest.approx(value, rel=1e-5)
    assert_close(gradients_of(model, mean), gradients)
    with torch.no_grad():
        evaluated = loss.sum(model.eval(), batch) / loss.count(batch)
    assert evaluated.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("lean", [True, False])
def test_a_row_of_weight_two_counts_as_two_rows(llama_dir, lean):
    model, loss = language_model(llama_dir, lean), CausalLMLoss()
    first, second = ragged_examples(2, vocabulary=90)
    doubled = Example(first.input_ids, first.labels, 2.0)
    once, twice = PadRight(0)([doubled, second]), PadRight(0)([first, first, second])
    assert "weights" not in twice
    assert loss.count(once) == loss.count(twice)
    sums = [loss.sum(model.train(), batch) for batch in (once, twice)]
    assert sums[0].item() == pytest.approx(sums[1].item(), rel=1e-6)
    assert_close(*(gradients_of(model, each) for each in sums))


@pytest.mark.parametrize("cut", [(6, 1), (1, 6), (2, 3), (4, 2)])
def test_how_a_step_is_cut_does_not_matter(llama_dir, tmp_path, cut):
    """The second, third and fifth passes of one row have no weights."""
    model = language_model(llama_dir)
    settings = TrainSettings(
        batch_size=cut[0],
        accumulate=cut[1],
        max_steps=1,
        clip_norm=1e9,
        precision="no",
        group_by_length=False,
    )
    found = {}

    class Gradients(Callback):
        def before_optimizer_step(self, state):
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    found[name] = parameter.grad.clone()

    examples = weighted_examples()
    accelerator = make_accelerator(settings, model, tmp_path)
    Training(
        model, examples, PadRight(0), settings, tmp_path, accelerator, callbacks=[Gradients()],
        order=lambda epoch: range(len(examples)),
    ).run()  # fmt: skip
    assert_close(found, by_hand(llama_dir, examples)[1])


def test_an_evaluation_weighs_its_rows_whatever_the_size_of_a_batch(llama_dir, tmp_path):
    model, examples = language_model(llama_dir), weighted_examples()
    accelerator = make_accelerator(TrainSettings(precision="no"), model, tmp_path)
    expected = by_hand(llama_dir, examples)[0]
    for size in (1, 2, 6):
        found = evaluate(model, examples, PadRight(0), accelerator, batch_size=size)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("collate", [PadRight(0), PackBatch(0)])
def test_a_batch_has_weights_only_where_one_is_not_1(collate):
    examples = weighted_examples()
    assert "weights" not in collate([examples[1], examples[4]])
    batch = collate(examples[:2])
    assert batch["weights"].shape == batch["labels"].shape


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_loss_of_an_encoder_decoder_is_that_by_hand(name, lean):
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = without_dropout(
        peftkit.attach(architecture.model(), peftkit.LoraConfig(r=4), lean=lean)
    )
    batch = architecture.batch()
    weights = torch.tensor([[2.0], [0.5]]).expand(batch["labels"].shape)
    batch["labels"][1, 3:] = IGNORED
    loss = ModelLoss()
    assert loss.count(batch | {"weights": weights}) == 2.0 * 6 + 0.5 * 3
    found = loss.sum(model.train(), batch | {"weights": weights})
    with torch.no_grad():
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits = model.eval()(labels=batch["labels"], **inputs).logits.double()
    losses = F.cross_entropy(logits.mT, batch["labels"], reduction="none")  # [2, tokens]
    assert found.item() == pytest.approx(float((losses * weights).sum()), rel=1e-5)


def test_weights_are_refused_where_a_models_loss_is_another_one():
    class Smoothed(nn.Module):
        def forward(self, features, labels):
            logits = features * 2.0
            loss = F.cross_entropy(logits, labels, label_smoothing=0.5)
            return SequenceClassifierOutput(loss=loss, logits=logits)

    batch = {"features": torch.randn(3, 4), "labels": torch.tensor([0, 1, 2])}
    assert ModelLoss().sum(Smoothed(), batch).item() > 0
    with pytest.raises(ConfigError, match="leave the column 'weight' out"):
        ModelLoss().sum(Smoothed(), batch | {"weights": torch.tensor([1.0, 2.0, 1.0])})


class Linear(nn.Module):
    """A model as those of transformers, of one linear layer, with dropout."""

    def __init__(self, outputs, dropout=0.0):
        super().__init__()
        self.linear = nn.Linear(5, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features):
        return SequenceClassifierOutput(logits=self.linear(self.dropout(features)))


def labelled(*, tokens=0, teacher=False):
    shape = (4, tokens) if tokens else (4,)
    batch = {"features": torch.randn(*shape, 5), "labels": torch.randint(0, 3, shape)}
    batch["labels"][1] = IGNORED
    if teacher:
        batch["teacher"] = torch.randn(*shape, 3).softmax(-1)
    weights = torch.tensor([2.0, 5.0, 1.0, 0.5])
    return add_weights(batch, [SimpleNamespace(weight=float(weight)) for weight in weights])


def rows_one_by_one(loss, model, batch):
    """The sum of weight x loss over rows, each taken alone and without its weight."""
    total, count = torch.zeros(()), 0.0
    for row in range(4):
        alone = {key: value[row : row + 1] for key, value in batch.items() if key != "weights"}
        weight = float(batch["weights"][row].flatten()[0])
        total = total + weight * loss.sum(model, alone)
        count += weight * loss.count(alone)
    return total, count


CLASSES = torch.tensor([0.5, 2.0, 1.0])


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize(
    "loss",
    [ClassificationLoss(), ClassificationLoss(CLASSES, 0.1, 2.0, 0.3, 2.0)],
    ids=["plain", "all"],
)
def test_classes_and_tags_weigh_as_their_rows(tokens, teacher, loss):
    model, batch = Linear(3), labelled(tokens=tokens, teacher=teacher)
    expected, count = rows_one_by_one(loss, model, batch)
    found = loss.sum(model, batch)
    assert loss.count(batch) == pytest.approx(count)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close(gradients_of(model, found), gradients_of(model, expected))


def test_scores_weigh_as_their_rows():
    model, batch = Linear(1), labelled()
    batch["labels"] = batch["labels"].float()
    expected, count = rows_one_by_one(RegressionLoss(), model, batch)
    found = RegressionLoss().sum(model, batch)
    assert RegressionLoss().count(batch) == pytest.approx(count)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close(gradients_of(model, found), gradients_of(model, expected))


def test_r_drop_weighs_the_divergence_of_a_row_too():
    model, batch = Linear(3, dropout=0.5), labelled()
    loss = RDrop(ClassificationLoss(), 0.7)
    torch.manual_seed(3)
    found = loss.sum(model, batch)
    torch.manual_seed(3)
    first, second = (ClassificationLoss().logits(model, batch).double() for _ in range(2))
    labels, weights = batch["labels"][[0, 2, 3]], torch.tensor([2.0, 1.0, 0.5])
    p, q = first.softmax(-1), second.softmax(-1)
    hard = -(p.log() + q.log())[range(3), labels] / 2
    divergence = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)) / 2
    expected = (weights * (hard + 0.7 * divergence)).sum().item()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_adversarial_training_weighs_both_its_losses():
    architecture = ARCHITECTURES["bert"]
    torch.manual_seed(0)
    model = without_dropout(peftkit.attach(architecture.model(), peftkit.LoraConfig(r=4))).train()
    batch = architecture.batch()
    loss = Adversarial(ClassificationLoss(), radius=0.5)
    each = []
    for row in range(2):
        each.append(loss.sum(model, {key: value[row : row + 1] for key, value in batch.items()}))
    weighted = batch | {"weights": torch.tensor([3.0, 0.5])}
    found = loss.sum(model, weighted)
    assert found.item() == pytest.approx((3 * each[0] + 0.5 * each[1]).item(), rel=1e-4)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), True, "heavy", "0", [1.0]])
def test_a_weight_that_is_no_number_above_0_is_refused(weight):
    with pytest.raises(DataError, match="must be a number above 0"):
        row_weight({"weight": weight})


def test_rows_with_a_weight_of_their_own_are_counted():
    counts = Counter()
    rows = [{}, {"weight": None}, {"weight": ""}, {"weight": 1}, {"weight": 2}, {"weight": "0.5"}]
    assert [counted_weight(row, counts) for row in rows] == [1.0, 1.0, 1.0, 1.0, 2.0, 0.5]
    assert describe_weights(counts) == ", 2 with a weight of their own in the loss"
    assert describe_weights(Counter()) == ""


@pytest.mark.parametrize("name", ["chat", "text_classification", "token_classification", "seq2seq"])
def test_a_recipe_reads_the_weights_of_its_rows_and_says_how_many(tmp_path, llama_dir, capfd, name):
    rows = rows_of(name, tmp_path, 8)
    rows[0]["weight"], rows[5]["weight"] = 4, 0.5
    values = config_values(name, tmp_path, llama_dir, steps=2)
    write_jsonl(tmp_path / "train.jsonl", rows)
    values["data"] |= {"evaluation": None}
    values["train"] = {"max_steps": 2, "batch_size": 4}
    run(name, values)
    assert "2 with a weight of their own in the loss" in capfd.readouterr().err
