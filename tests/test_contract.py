"""What every method promises on every architecture."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file

import peftkit
from peftkit.errors import TargetError
from tests.architectures import ARCHITECTURES
from tests.contract import (
    GENERATING,
    MERGEABLE,
    METHOD_OF,
    METHODS,
    PAIRS,
    REFUSED,
    attached,
    frozen,
    output,
    shaken,
)

each_pair = pytest.mark.parametrize(("method", "name"), PAIRS)


@each_pair
def test_attaching_changes_nothing_yet(method, name):
    if not METHOD_OF[method].starts_as_backbone:
        pytest.skip("a prefix takes a share of the attention from its first step on")
    model, batch = frozen(ARCHITECTURES[name].model()), ARCHITECTURES[name].batch()
    before = output(model, batch)
    assert torch.equal(output(peftkit.attach(model, METHODS[method]()), batch), before)


@each_pair
def test_only_the_adapter_and_the_head_train_and_three_steps_change_the_output(method, name):
    batch = ARCHITECTURES[name].batch()
    model = attached(method, name, trained=False)
    frozen = {
        key: value.clone()
        for key, value in model.get_base_model().named_parameters()
        if not value.requires_grad
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    heads = [part for part in model.modules() if isinstance(part, ModulesToSaveWrapper)]
    prefix = METHOD_OF[method].tuner_class.prefix
    for key, parameter in model.named_parameters():
        whole = any(
            parameter is inner for head in heads for inner in head.modules_to_save.parameters()
        )
        assert not parameter.requires_grad or prefix in key or whole, key
    before = output(model, batch)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    torch.manual_seed(0)
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
        without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not [key for key in without if not unused(key, name)], without
        assert all(bool(p.grad.isfinite().all()) for p in trained if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    assert bool(loss.isfinite())
    assert not torch.equal(output(model, batch), before)
    now = dict(model.get_base_model().named_parameters())
    assert all(torch.equal(now[key], value) for key, value in frozen.items())


def unused(key, name):
    """Say of which layers the model's own forward makes no use in these inputs."""
    never = {
        "xlnet": ("mask_emb",),
        "clip": ("text_model", "text_projection"),
        "longformer": ("_global",),
        "llava": (
            "vision_tower.encoder.layers.2",
            "vision_tower.vision_model.encoder.layers.2",
            "post_layernorm",
        ),
    }
    return any(part in key for part in never.get(name, ()))


@each_pair
def test_what_was_saved_loads_into_another_model_and_gives_the_same_bits(method, name, tmp_path):
    batch = ARCHITECTURES[name].batch()
    model = attached(method, name).requires_grad_(
        False
    )  # torch picks a kernel by whether a weight is trained
    with torch.no_grad():
        loss, logits = (lambda out: (out.loss, out.logits))(model(**batch))
    peftkit.save(model, tmp_path)
    again = peftkit.load(ARCHITECTURES[name].model(), tmp_path)
    with torch.no_grad():
        found = again(**batch)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.loss, loss)
    assert not [key for key, parameter in again.named_parameters() if parameter.requires_grad]
    backbone = ARCHITECTURES[name].model().state_dict()
    heads = [
        key
        for key, part in again.get_base_model().named_modules()
        if isinstance(part, ModulesToSaveWrapper)
    ]
    kept = [
        key.removeprefix("base_model.model.")
        for key in load_file(tmp_path / "adapter_model.safetensors")
    ]
    assert not [
        key
        for key in kept
        if key in backbone and not key.startswith(tuple(f"{head}." for head in heads))
    ]


@each_pair
def test_disabled_it_is_the_backbone_and_detached_too(method, name):
    model, batch = frozen(ARCHITECTURES[name].model()), ARCHITECTURES[name].batch()
    before, state = (
        output(model, batch),
        {key: value.clone() for key, value in model.state_dict().items()},
    )
    adapted = shaken(peftkit.attach(model, METHODS[method]()))
    assert not torch.equal(output(adapted, batch), before)
    with adapted.disable_adapter():
        assert torch.equal(output(adapted, batch), before)
    plain = peftkit.detach(adapted)
    assert plain is model
    assert list(plain.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    assert torch.equal(output(plain, batch), before)


@pytest.mark.parametrize(("method", "name"), MERGEABLE)
def test_merged_it_computes_the_same(method, name):
    batch = ARCHITECTURES[name].batch()
    model = attached(method, name)
    expected = output(model, batch)
    merged = peftkit.merge(model, dtype=torch.float32)
    torch.testing.assert_close(output(merged, batch), expected, rtol=1e-4, atol=2e-4)


@each_pair
def test_gradient_checkpointing_changes_no_gradient(method, name):
    model, batch = attached(method, name), ARCHITECTURES[name].batch()
    if not model.get_base_model().supports_gradient_checkpointing:
        pytest.skip("transformers has no gradient checkpointing for it")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = gradients(model, batch)
    backbone = model.get_base_model()
    enable = (
        getattr(backbone, "activation_checkpointing_enable", None)
        or backbone.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    found = gradients(model, batch)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def gradients(model, batch):
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    model(**batch).loss.backward()
    assert not [
        key
        for part in model.modules()
        for key in vars(part)
        if key in ("_peftkit_input", "_peftkit_normed")
    ]
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "name"), GENERATING)
def test_generation_with_a_cache_is_generation_without(method, name):
    architecture = ARCHITECTURES[name]
    model, batch = (
        attached(method, name),
        architecture.batch(
            labels=False, padding="left" if architecture.inputs == "text" else "none"
        ),
    )
    batch.pop("decoder_input_ids", None)
    asked = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}
    with_cache = model.generate(**batch, **asked, use_cache=True)
    assert torch.equal(with_cache, model.generate(**batch, **asked, use_cache=False))


@each_pair
def test_what_stands_in_padding_reaches_no_real_token(method, name):
    architecture = ARCHITECTURES[name]
    if architecture.inputs != "text":
        pytest.skip("no text, no padding")
    model = attached(method, name)
    for side in ("left", "right"):
        batch = architecture.batch(padding=side)
        other = dict(
            batch, input_ids=torch.where(batch["attention_mask"] == 0, 50, batch["input_ids"])
        )
        with model.disable_adapter():
            tolerance = (
                (output(model, other) - output(model, batch))[real(batch, model)].abs().max()
            )
        if tolerance < 1e-5:  # a backbone that lets padding through (state spaces) is none of ours
            difference = (
                (output(model, other) - output(model, batch))[real(batch, model)].abs().max()
            )
            assert difference < 1e-4, side


def real(batch, model):
    """Return which outputs stand for real tokens: every one where a row or a target has one output
    of its own.
    """
    shape = output(model, batch).shape[:-1]
    mask = batch["attention_mask"].bool()
    return mask if mask.shape == shape else torch.ones(shape, dtype=torch.bool)


@each_pair
def test_rows_of_a_batch_are_what_they_are_alone_and_tokens_what_they_are_in_a_longer_text(
    method, name
):
    """As many rows as heads and tokens as features: no axis may be mistaken for another."""
    architecture = ARCHITECTURES[name]
    if architecture.inputs != "text" or architecture.task != "causal-lm":
        pytest.skip("no causal model of text")
    model = attached(method, name)
    ids = torch.randint(4, 90, (4, 40))
    whole = output(model, {"input_ids": ids[:, :32]})
    for row in range(4):
        torch.testing.assert_close(
            output(model, {"input_ids": ids[row : row + 1, :32]})[0],
            whole[row],
            rtol=1e-4,
            atol=1e-4,
        )
    if name not in (
        "gpt_oss",
    ):  # whose tokens are kept within the capacity of a window of positions
        torch.testing.assert_close(
            output(model, {"input_ids": ids})[:, :32], whole, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    ("method", "name"), [pair for pair in PAIRS if pair[0] in ("prefix", "pfeiffer")]
)
def test_eager_attention_is_sdpa(method, name):
    model = attached(method, name)
    backbone = model.get_base_model()
    if not backbone._supports_sdpa:
        pytest.skip("transformers has one implementation of its attention")
    batch = ARCHITECTURES[name].batch(
        padding="right" if ARCHITECTURES[name].inputs == "text" else "none"
    )
    found = {}
    for implementation in ("eager", "sdpa"):
        backbone.set_attn_implementation(implementation)
        found[implementation] = (
            output(model, batch)[real(batch, model)]
            if "attention_mask" in batch
            else output(model, batch)
        )
    torch.testing.assert_close(found["eager"], found["sdpa"], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_what_cannot_be_is_one_sentence_and_leaves_the_model_alone(method, name):
    model, batch = ARCHITECTURES[name].model(), ARCHITECTURES[name].batch()
    before = output(model, batch)
    with pytest.raises(TargetError, match=REFUSED[method, name]):
        peftkit.attach(model, METHODS[method]())
    assert torch.equal(output(model, batch), before)


FRESH = """
import sys, warnings
warnings.filterwarnings("ignore")
import peft, torch
import peftkit
from tests.contract import METHODS, output
from tests.architectures import ARCHITECTURES
for name in ("llama", "bert", "t5"):
    for method in METHODS:
        path = f"{sys.argv[1]}/{name}/{method}"
        with_labels, without = torch.load(f"{path}/expected.pt")
        model = peftkit.load(ARCHITECTURES[name].model(), path)
        assert torch.equal(output(model, ARCHITECTURES[name].batch()), with_labels), (name, method)
        model = peft.PeftModel.from_pretrained(ARCHITECTURES[name].model(), path)
        # Without labels, on which PEFT's AdaLoRA fails.
        torch.testing.assert_close(output(model, ARCHITECTURES[name].batch(labels=False)), without)
"""


def test_a_fresh_process_gives_the_same_bits_by_peftkit_and_by_peft(tmp_path):
    for name in ("llama", "bert", "t5"):
        for method in METHODS:
            model = attached(method, name).requires_grad_(False)
            peftkit.save(model, tmp_path / name / method)
            expected = [
                output(model, ARCHITECTURES[name].batch(labels=labels)) for labels in (True, False)
            ]
            torch.save(expected, tmp_path / name / method / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
