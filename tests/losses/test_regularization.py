import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_outputs import SequenceClassifierOutput

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.data.padding import PadRight
from peftkit.errors import ConfigError
from peftkit.labels import IGNORED
from peftkit.losses.base import CausalLMLoss, ModelLoss
from peftkit.losses.classification import ClassificationLoss, RegressionLoss
from peftkit.losses.regularization import Adversarial, RDrop, symmetric_divergence
from peftkit.training.accelerator import make_accelerator
from peftkit.training.evaluation import evaluate
from peftkit.training.loop import Training
from tests.architectures import ARCHITECTURES
from tests.contract import METHODS, shaken
from tests.training.job import ragged_examples

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class SplitLanguageModel(CausalLMLoss):
    """The causal language model's loss in two steps, as R-Drop needs it."""

    def logits(self, model, batch):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return (
            model(**inputs, use_cache=False)
            .logits[:, :-1][batch["labels"][:, 1:] != IGNORED]
            .float()
        )

    def sum_from(self, logits, batch):
        targets = batch["labels"][:, 1:]
        return F.cross_entropy(logits, targets[targets != IGNORED], reduction="sum")

    def weights(self, batch):
        return None


class Dropping(nn.Module):
    """A classifier with dropout before its one layer."""

    def __init__(self, p=0.3):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(p), nn.Linear(6, 3)

    def forward(self, features):
        return SequenceClassifierOutput(logits=self.linear(self.dropout(features)))


def model_of(name, method="lora", *, changes=None, dtype=torch.float32, config=None):
    """A model with an adapter that makes a difference, in training mode, without dropout unless
    `changes` has some.
    """
    architecture = ARCHITECTURES[name]
    architecture = dataclasses.replace(
        architecture, settings=architecture.settings | (changes or {})
    )
    torch.manual_seed(0)
    model = peftkit.attach(architecture.model(), config or METHODS[method]())
    return shaken(model).to(dtype).train()


def still(model):
    """Turn every dropout module off."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def bert(method="lora", dtype=torch.float32, **changes):
    return still(model_of("bert", method, changes=WITHOUT_DROPOUT | changes, dtype=dtype))


def text_batch(rows=4, tokens=8, seed=0, labels="sequence"):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[1, tokens - 3 :] = 0
    targets = (
        torch.randint(0, 3, (rows,), generator=generator)
        if labels == "sequence"
        else ids.where(mask > 0, IGNORED)
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": targets}


def rows_of(batch, chosen):
    return {name: value[chosen] for name, value in batch.items()}


def gradients(model):
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is not None
    }


def gradients_of(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return gradients(model)


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


# R-Drop


def written_out(first, second, labels, weight):
    """Eq. 2-4 of the paper in float64, with the two losses averaged."""
    p, q = first.double().softmax(-1), second.double().softmax(-1)
    nll = -(p.log() + q.log())[range(len(labels)), labels] / 2
    divergence = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)) / 2
    return float((nll + weight * divergence).detach().sum())


def test_r_drop_is_the_sum_that_is_written_out():
    model, loss = Dropping(), RDrop(ClassificationLoss(), 0.7)
    batch = {"features": torch.randn(5, 6), "labels": torch.tensor([0, 2, IGNORED, 1, 1])}
    torch.manual_seed(3)
    value = loss.sum(model, batch)
    torch.manual_seed(3)
    first, second = (model(batch["features"]).logits for _ in range(2))
    assert not torch.equal(first, second)
    kept = batch["labels"] != IGNORED
    expected = written_out(first[kept], second[kept], batch["labels"][kept], 0.7)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count(batch) == 4


def test_r_drop_of_tags_and_of_a_language_model():
    model = model_of("llama", config=peftkit.LoraConfig(r=4, lora_dropout=0.3))
    batch = text_batch(labels="tokens")
    torch.manual_seed(3)
    loss = RDrop(SplitLanguageModel(), 0.5).sum(model, batch)
    torch.manual_seed(3)
    first, second = (SplitLanguageModel().logits(model, batch) for _ in range(2))
    targets = batch["labels"][:, 1:]
    expected = written_out(first, second, targets[targets != IGNORED], 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    tags = ARCHITECTURES["bert-token"].batch(padding="right")
    tagger = model_of("bert-token", config=peftkit.LoraConfig(r=4, lora_dropout=0.3))
    torch.manual_seed(3)
    loss = RDrop(ClassificationLoss(), 0.5).sum(tagger, tags)
    torch.manual_seed(3)
    first, second = (ClassificationLoss().logits(tagger, tags) for _ in range(2))
    assert first.shape == (14, 3)
    expected = written_out(first, second, tags["labels"][tags["labels"] != IGNORED], 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_r_drop_learns_from_a_teacher_and_keeps_class_weights():
    model, plain = Dropping(), ClassificationLoss(torch.tensor([1.0, 2.0, 3.0]), 0.1, 2.0, 0.5, 2.0)
    batch = {"features": torch.randn(3, 6), "labels": torch.tensor([0, 1, IGNORED])}
    batch["teacher"] = torch.randn(3, 3).softmax(-1)
    loss = RDrop(plain, 1.0)
    assert loss.count(batch) == 3
    torch.manual_seed(3)
    value = loss.sum(model, batch)
    torch.manual_seed(3)
    first, second = (plain.logits(model, batch) for _ in range(2))
    expected = (
        plain.sum_from(first, batch) + plain.sum_from(second, batch)
    ) / 2 + symmetric_divergence(first, second)
    assert torch.equal(value, expected)


def test_outside_training_regularisers_make_one_pass_with_the_plain_loss():
    model, batch = bert(), text_batch()
    plain = ClassificationLoss()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for loss in (RDrop(plain, 1.0), Adversarial(plain), Adversarial(RDrop(plain, 1.0), "pgd")):
        with torch.no_grad():
            assert torch.equal(loss.sum(model, batch), plain.sum(model, batch))
        model.eval()
        assert torch.equal(loss.sum(model, batch), plain.sum(model, batch))
        model.train()
    assert len(calls) == 12


DROPOUTS = {
    "lora": ("bert", WITHOUT_DROPOUT, peftkit.LoraConfig(r=4, lora_dropout=0.1)),
    "adalora": (
        "bert",
        WITHOUT_DROPOUT,
        peftkit.AdaLoraConfig(init_r=4, target_r=2, total_step=8, lora_dropout=0.1),
    ),
    "bottleneck": (
        "bert",
        WITHOUT_DROPOUT,
        peftkit.BottleneckConfig(reduction_factor=4, dropout=0.1),
    ),
    "prefix": (
        "bert",
        WITHOUT_DROPOUT,
        peftkit.PrefixConfig(num_virtual_tokens=3, prefix_dropout=0.1),
    ),
    "backbone": ("bert", WITHOUT_DROPOUT | {"hidden_dropout_prob": 0.1}, peftkit.LoraConfig(r=4)),
    "attention": (
        "bert",
        WITHOUT_DROPOUT | {"attention_probs_dropout_prob": 0.1},
        peftkit.LoraConfig(r=4),
    ),
}


@pytest.mark.parametrize("where", DROPOUTS)
def test_r_drop_finds_dropout_wherever_it_is_before_an_update_has_any_effect(where):
    name, changes, config = DROPOUTS[where]
    settings = ARCHITECTURES[name].settings | changes | {"classifier_dropout": 0.0}
    architecture = type(ARCHITECTURES[name])(
        "sequence-classification", "Bert", "BertForSequenceClassification", settings
    )
    model = peftkit.attach(architecture.model(), config).train()
    assert torch.isfinite(RDrop(ClassificationLoss(), 1.0).sum(model, text_batch()))


@pytest.mark.parametrize("method", METHODS)
def test_r_drop_without_dropout_is_refused(method):
    with pytest.raises(ConfigError, match=r"R-Drop needs dropout.*adapter\.lora_dropout"):
        RDrop(ClassificationLoss(), 1.0).sum(bert(method), text_batch())


def test_r_drop_of_a_loss_without_distributions_is_refused():
    for loss in (ModelLoss(), RegressionLoss()):
        with pytest.raises(ConfigError, match=f"{type(loss).__name__} does not give their logits"):
            RDrop(loss, 1.0)
    with pytest.raises(ConfigError, match="weight is 0"):
        RDrop(ClassificationLoss(), 0)


# adversarial training: the reference passes embeddings explicitly


def reference_loss(model, batch, loss_of, *, radius, steps, step_size, embeddings=None):
    embedded = (embeddings or model.get_input_embeddings())(batch["input_ids"]).detach()

    def loss_at(shift):
        return loss_of(
            model(inputs_embeds=embedded + shift, attention_mask=batch["attention_mask"]).logits,
            batch["labels"],
        )

    shift = torch.zeros_like(embedded)
    for _ in range(steps):
        shift = shift.detach().requires_grad_()
        gradient = torch.autograd.grad(loss_at(shift), shift)[0]
        moved = []
        for row, slope in zip(shift.detach(), gradient, strict=True):
            norm = slope.pow(2).sum().sqrt()
            new = row + step_size * slope / norm if norm > 0 else row
            length = new.pow(2).sum().sqrt()
            moved.append(new * radius / length if length > radius else new)
        shift = torch.stack(moved)
    return (loss_at(torch.zeros_like(embedded)) + loss_at(shift)) / 2, shift


def class_loss(logits, labels):
    return F.cross_entropy(logits, labels, reduction="sum")


def token_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


KINDS = {
    "fgm": (
        Adversarial(ClassificationLoss(), "fgm", 0.5),
        {"radius": 0.5, "steps": 1, "step_size": 0.5},
    ),
    "pgd": (
        Adversarial(ClassificationLoss(), "pgd", 0.5, 4),
        {"radius": 0.5, "steps": 4, "step_size": 0.3125},
    ),
    "pgd inside": (
        Adversarial(ClassificationLoss(), "pgd", 9.0, 3, 0.1),
        {"radius": 9.0, "steps": 3, "step_size": 0.1},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_those_of_perturbed_embeddings(method, kind):
    """In float64, against embeddings that are passed explicitly, one row without a label."""
    model, batch = bert(method, torch.float64), text_batch()
    batch["labels"][2] = IGNORED
    loss, options = KINDS[kind]
    expected, shift = reference_loss(model, batch, class_loss, **options)
    norms = shift.flatten(1).norm(dim=1)
    assert norms[2] == 0
    assert norms[0] == pytest.approx(0.5 if options["radius"] < 1 else 0.3, rel=0.2)
    wanted = gradients_of(model, expected)
    value = loss.sum(model, batch)
    torch.testing.assert_close(value, expected)
    assert_same(gradients_of(model, value), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_language_model_learns_from_perturbed_embeddings(method):
    model, batch = model_of("llama", method, dtype=torch.float64), text_batch(labels="tokens")
    expected, _ = reference_loss(model, batch, token_loss, radius=0.5, steps=1, step_size=0.5)
    wanted = gradients_of(model, expected)
    for inner in (CausalLMLoss(), ModelLoss()):
        loss = Adversarial(inner, radius=0.5).sum(model, batch)
        if isinstance(inner, CausalLMLoss):
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
            assert_same(gradients_of(model, loss), wanted, rtol=1e-4, atol=1e-6)


def test_nothing_is_left_behind():
    model, batch = bert(), text_batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = len(model.get_input_embeddings()._forward_hooks)
    for kind in ("fgm", "pgd"):
        Adversarial(ClassificationLoss(), kind).sum(model, batch)
        assert gradients(model) == {}
        with pytest.raises(ConfigError, match="4 class weights"):
            Adversarial(ClassificationLoss(torch.ones(4)), kind).sum(model, batch)
        assert len(model.get_input_embeddings()._forward_hooks) == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
@pytest.mark.parametrize("name", ["bert", "xlnet"])
def test_each_example_is_perturbed_by_itself(kind, name):
    """1 x 8 = 8 x 1; XLNet's embeddings have the batch in their second dimension, which here is as
    long as the first.
    """
    model = bert() if name == "bert" else still(model_of("xlnet"))
    batch = text_batch(rows=8)
    batch["labels"][3] = IGNORED
    loss = Adversarial(ClassificationLoss(), kind, 0.3)
    whole = gradients_of(model, loss.sum(model, batch))
    model.zero_grad(set_to_none=True)
    for row in range(8):
        loss.sum(model, rows_of(batch, [row])).backward()
    assert_same(gradients(model), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", [ClassificationLoss(), ModelLoss()])
@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_a_batch_that_counts_for_nothing_gives_a_zero_with_a_gradient(kind, loss):
    model, batch = bert(), text_batch()
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    total = Adversarial(loss, kind).sum(model, batch)
    assert total.item() == 0
    found = gradients_of(model, total)
    assert found
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found.values())


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
@pytest.mark.parametrize("inner", [CausalLMLoss(), RDrop(SplitLanguageModel(), 0.5)])
def test_gradient_checkpointing_changes_nothing(kind, inner):
    found = []
    for checkpointing in (False, True):
        model = model_of("llama", config=peftkit.LoraConfig(r=4, lora_dropout=0.2))
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        found.append(
            gradients_of(
                model, Adversarial(inner, kind, 0.3).sum(model, text_batch(labels="tokens"))
            )
        )
    assert_same(found[1], found[0])


@pytest.mark.parametrize(
    ("method", "quantization", "kind"),
    [
        ("lora", None, "pgd"),
        ("lora", "nf4", "fgm"),
        ("adalora", "nf4", "pgd"),
        ("pfeiffer", "int8", "fgm"),
        ("prefix", "int8", "pgd"),
    ],
)
def test_sixteen_and_four_bit_backbones_under_autocast(llama_dir, method, quantization, kind):
    model = peftkit.attach(
        peftkit.load_backbone(llama_dir, quantization=quantization), METHODS[method]()
    ).train()
    shaken(model, 0.02).train()
    batch = PadRight(2)(ragged_examples(4))
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *hook: seen.append(hook[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = Adversarial(CausalLMLoss(), kind, 1.0).sum(model, batch)
        clean = CausalLMLoss().sum(model, batch)
    assert loss.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    assert loss.item() > 1.002 * clean.item()
    assert all(torch.isfinite(value).all() for value in gradients_of(model, loss).values())


PERTURBED = [
    "gemma3",
    "gpt2",
    "mamba2",
    "jamba",
    "albert",
    "modernbert",
    "longformer",
    "bert-token",
    "t5",
    "bart",
    "marian",
    "vit",
    "swin",
    "dinov2",
    "whisper",
    "llava",
]


@pytest.mark.parametrize("name", PERTURBED)
def test_a_small_perturbation_costs_what_its_gradient_says(name):
    """To first order the adversarial loss is higher by radius x the sum of the gradients' norms:
    twice that for twice it.
    """
    model, batch = model_of(name).eval(), ARCHITECTURES[name].batch(padding="right")
    model.training = True  # the parts stay in evaluation, without dropout
    clean = ModelLoss().sum(model, batch).item()
    first, second = (
        Adversarial(ModelLoss(), radius=radius).sum(model, batch).item() - clean
        for radius in (2e-3, 4e-3)
    )
    assert first > 1e-6 * clean
    assert second == pytest.approx(2 * first, rel=0.1)


@pytest.mark.parametrize("name", ["resnet", "convnext", "clip", "wav2vec2"])
def test_models_without_input_embeddings_are_refused(name):
    model = model_of(name, "lora" if name != "resnet" else "pfeiffer")
    with pytest.raises(ConfigError, match="this model names none"):
        Adversarial(ModelLoss()).sum(model, ARCHITECTURES[name].batch())


def test_embeddings_that_are_not_called_are_refused():
    model, batch = bert(), text_batch()

    class Embedded(ClassificationLoss):
        def logits(self, model, batch):
            embedded = model.get_input_embeddings().weight[batch["input_ids"]]
            return model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits

    with pytest.raises(ConfigError, match="does not call it"):
        Adversarial(Embedded()).sum(model, batch)
    with pytest.raises(ConfigError, match="the embedded input_ids, which the batch does not have"):
        Adversarial(Embedded()).sum(model, {"labels": batch["labels"]})


@pytest.mark.parametrize(
    "values", [{"kind": "fgsm"}, {"radius": 0}, {"steps": 0}, {"step_size": -1.0}]
)
def test_values_out_of_bounds_are_refused(values):
    with pytest.raises(ConfigError, match="Adversarial: "):
        Adversarial(ClassificationLoss(), **values)


def test_a_tiny_gradient_is_not_lost():
    class Tiny(ClassificationLoss):
        def sum_from(self, logits, batch):
            return super().sum_from(logits, batch) * 1e-25

    model, batch = bert(), text_batch()
    loss = Adversarial(ClassificationLoss(), radius=0.5).sum(model, batch)
    torch.testing.assert_close(Adversarial(Tiny(), radius=0.5).sum(model, batch) * 1e25, loss)


# in the loop, and on two processes


@pytest.mark.parametrize(
    ("precision", "make"),
    [
        ("bf16", lambda loss: RDrop(loss, 0.5)),
        ("no", Adversarial),
        ("no", lambda loss: Adversarial(RDrop(loss, 0.5), "pgd", 0.5, 2)),
    ],
)
def test_the_loop_learns_with_regularisers(llama_dir, tmp_path, precision, make):
    backbone = peftkit.load_backbone(
        llama_dir, dtype=torch.bfloat16 if precision == "bf16" else torch.float32
    )
    model = peftkit.attach(backbone, peftkit.LoraConfig(r=4, lora_dropout=0.1))
    settings = TrainSettings(
        learning_rate=3e-2,
        precision=precision,
        batch_size=2,
        accumulate=2,
        max_steps=6,
        gradient_checkpointing=True,
    )
    accelerator, loss = make_accelerator(settings, model, tmp_path), make(SplitLanguageModel())
    examples, collate = ragged_examples(), PadRight(2)
    before = evaluate(model, examples, collate, accelerator, loss=loss)
    Training(model, examples, collate, settings, tmp_path, accelerator, loss=loss).run()
    after = evaluate(model, examples, collate, accelerator, loss=loss)
    assert after["loss"] < before["loss"]
    assert "perplexity" in after


class Alternating:
    """Dropout that is the same on every process: even passes lose one half of the features, odd
    ones the other.
    """

    def __init__(self):
        self.calls = 0

    def __call__(self, module, arguments):
        torch.rand(1)
        self.calls += 1
        mask = torch.ones(arguments[0].shape[-1])
        mask[self.calls % 2 :: 2] = 0
        return (arguments[0] * mask,)


def losses():
    plain = ClassificationLoss(torch.tensor([1.0, 2.0, 3.0]), 0.1, 1.0)
    return {
        "plain": plain,
        "r_drop": RDrop(plain, 0.5),
        "fgm": Adversarial(plain, "fgm", 0.3),
        "pgd": Adversarial(plain, "pgd", 0.3),
        "both": Adversarial(RDrop(plain, 0.5), "pgd", 0.3, 2),
    }


def two_process_model(method):
    model = bert(method)
    [classifier] = [
        module for name, module in model.named_modules() if name.endswith("modules_to_save.default")
    ]
    alternating = Alternating()
    classifier.register_forward_pre_hook(alternating)
    return model, alternating


def one_of_two(rank, directory, method):
    """Make one step of two micro-batches of two rows, the last of which counts for nothing on the
    second process.
    """
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    batch = text_batch(rows=8)
    found = {}
    for name, loss in losses().items():
        model, alternating = two_process_model(method)
        parallel = DistributedDataParallel(model)
        parts = [
            rows_of(batch, [4 * rank, 4 * rank + 1]),
            rows_of(batch, [4 * rank + 2, 4 * rank + 3]),
        ]
        if rank == 1:
            parts[1]["labels"] = torch.full((2,), IGNORED)
        for number, part in enumerate(parts):
            alternating.calls = 0
            with contextlib.nullcontext() if number else parallel.no_sync():
                (loss.sum(parallel, part) * 2 / 6).backward()
        found[name] = gradients(model)
    torch.save(found, f"{directory}/{rank}.pt")
    destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(tmp_path, method):
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path), method), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    batch = rows_of(text_batch(rows=8), [0, 1, 2, 3, 4, 5])
    for name, loss in losses().items():
        model, _ = two_process_model(method)
        expected = gradients_of(model, loss.sum(model, batch) / 6)
        assert_same(ranks[0][name], expected, rtol=1e-3, atol=1e-5)
        assert_same(ranks[1][name], ranks[0][name], rtol=0, atol=0)
