"""The bytes that a block keeps for each token, counted to the last one."""

import functools

import pytest
import torch
from transformers import LlamaForCausalLM

import peftkit
from peftkit.lean import Lean
from peftkit.memory.storages import LiveStorages
from tests.conftest import llama_config
from tests.lean.step import attached, configured

# Widths of the stream, of its keys, and of the feed-forward part; heads, rank, and layers that are
# adapted.
H, H_KV, INNER, HEADS, RANK, LAYERS = 64, 32, 128, 4, 4, 7
# Norms' inputs, queries, what attention gives; keys and values; what gate and up give: 2 bytes for
# each feature.
FLOOR = 4 * 2 * H + 2 * 2 * H_KV + 2 * 2 * INNER
# The logarithms of attention's sums, in float32, and A x of each adapted layer.
BESIDE = 4 * HEADS + 2 * RANK * LAYERS
CHECKPOINTED = 2 * H


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Llamas of two and of three layers, by that number."""
    found = {}
    for layers in (2, 3):
        torch.manual_seed(0)
        found[layers] = tmp_path_factory.mktemp(f"llama-{layers}")
        LlamaForCausalLM(llama_config(num_hidden_layers=layers)).to(torch.bfloat16).save_pretrained(
            found[layers]
        )
    return found


def kept(model, tokens):
    """The bytes alive between a forward pass and its backward pass."""
    ids = torch.randint(4, 300, (1, tokens))
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with LiveStorages() as storages, torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
        live = storages.live
    loss.backward()
    return live


def made(backbone, *, lean, checkpointing=False, method="lora", **changes):
    """A model with an adapter that has taken its first step, in which it finds out what its loss
    is.
    """
    model = attached(backbone, configured(method, **changes), lean)
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(4, 300, (1, 4))
    model(input_ids=ids, labels=ids, use_cache=False)
    return model


def per_token_and_layer(make, **how):
    """What another layer adds for another token: neither what is there once, nor what a layer has
    without tokens.
    """
    models = [made(make(layers), **how) for layers in (2, 3)]
    few, many = ([kept(model, tokens) for model in models] for tokens in (16, 48))
    return ((many[1] - many[0]) - (few[1] - few[0])) / 32


def bfloat16(layers):
    return LlamaForCausalLM(llama_config(num_hidden_layers=layers)).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {}),
        ("lora", {"lora_dropout": 0.1}),
        ("adalora", {}),
        ("lora", {"use_rslora": True}),
    ],
    ids=["lora", "dropout", "adalora", "rslora"],
)
def test_a_lean_block_saves_as_few_bytes_as_its_matrix_products_need(method, changes):
    """With dropout too: PEFT keeps a copy and a mask for every layer."""
    found, of_peft = (
        per_token_and_layer(bfloat16, lean=lean, method=method, **changes) for lean in (True, False)
    )
    assert found == FLOOR + BESIDE
    assert of_peft > (3.9 if "lora_dropout" in changes else 2.2) * found


COSTS = {
    "norms": 2 * (4 * H + 4),  # of each norm a copy in float32, and the root of the mean square
    "feed_forward": 2 * 2 * INNER,  # the activation's output, and its product with up
    "layers": 2
    * (6 * H + INNER),  # of what each adapted layer reads a copy that went through float32
}


@pytest.mark.parametrize("part", COSTS)
def test_each_lean_part_saves_bytes_by_itself(part):
    assert per_token_and_layer(bfloat16, lean=Lean(**{part: False})) == FLOOR + BESIDE + COSTS[part]


def test_a_lean_block_with_a_bottleneck_adapter_saves_fewer_bytes():
    found, plain = (
        per_token_and_layer(bfloat16, lean=lean, method="pfeiffer") for lean in (True, False)
    )
    assert found < 0.75 * plain


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_lean_quantised_block_saves_fewer_bytes(directories, quantization):
    """The int8 layers save what they read, though only a trained weight needs it."""
    make = functools.partial(quantised, directories, quantization)
    found, of_peft = (per_token_and_layer(make, lean=lean) for lean in (True, False))
    assert found == FLOOR + BESIDE
    assert of_peft > 2 * found


def quantised(directories, quantization, layers):
    return peftkit.load_backbone(directories[layers], quantization=quantization)


@pytest.mark.parametrize("storage", ["bfloat16", "nf4", "int8"])
def test_a_checkpointed_block_saves_nothing_but_its_input(directories, storage):
    make = bfloat16 if storage == "bfloat16" else functools.partial(quantised, directories, storage)
    found, of_peft = (
        per_token_and_layer(make, lean=lean, checkpointing=True, lora_dropout=0.1)
        for lean in (True, False)
    )
    assert found == CHECKPOINTED
    assert of_peft >= found if storage != "int8" else of_peft > 4 * found


def test_the_chunked_loss_saves_nothing_but_the_gradient_of_the_hidden_states():
    """And of the whole logits, a copy in float32 and their softmax."""
    found = {}
    for lean in (True, Lean(loss=False)):
        model = made(bfloat16(2), lean=lean, checkpointing=True)
        found[lean is True] = (kept(model, 48) - kept(model, 16)) / 32 - 2 * CHECKPOINTED
    vocabulary = llama_config().vocab_size
    assert found[True] <= 6 * H
    assert found[False] >= 4 * vocabulary


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("method", ["lora", "adalora", "pfeiffer"])
def test_nothing_of_a_step_waits_for_the_garbage_collector_when_it_is_over(method, backward):
    model = made(bfloat16(2), lean=True, method=method)
    ids = torch.randint(4, 300, (1, 16))
    with LiveStorages() as storages:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if backward:
            loss.backward()
        del loss
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert bool(gradients) == backward
        assert storages.live == sum(gradient.untyped_storage().nbytes() for gradient in gradients)
