"""Which blocks compute their activations again: all, a share, or as few as fit; the numbers stay
what they are.
"""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.memory.storages import LiveStorages
from peftkit.training.gradient_checkpointing import checkpoint_blocks
from tests.conftest import llama_config
from tests.contract import METHODS

BLOCKS = 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(llama_config(num_hidden_layers=BLOCKS)).requires_grad_(False)
    return peftkit.attach(backbone, peftkit.LoraConfig(r=4, lora_dropout=0.1))


def loss(model):
    ids = torch.randint(4, 320, (2, 64), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, labels=ids).loss


def gradients(model):
    torch.manual_seed(5)
    model.zero_grad()
    loss(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def peak(model):
    loss(model).backward()  # what the first step finds out
    model.zero_grad()
    with LiveStorages() as storages:
        storages.ignore(*model.parameters(), *model.buffers())
        loss(model).backward()
    model.zero_grad()
    return storages.peak


def recomputed(model):
    return [layer.gradient_checkpointing for layer in model.get_base_model().model.layers]


@pytest.mark.parametrize(
    ("wanted", "blocks"), [(False, 0), (0.25, 1), (0.5, 2), (0.01, 1), (0.99, 4), (True, 4)]
)
def test_a_share_of_the_blocks_the_first_ones_compute_again_with_the_same_gradients(
    model, wanted, blocks
):
    plain = gradients(model)
    told = checkpoint_blocks(
        model, TrainSettings(gradient_checkpointing=wanted), lambda: loss(model)
    )
    assert recomputed(model) == [number < blocks for number in range(BLOCKS)]
    assert told is None if not blocks else f"{blocks} of {BLOCKS}" in told
    again = gradients(model)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_auto_recomputes_as_little_as_fits_and_the_prediction_holds(model):
    fixed = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed += 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    needs = {}
    for blocks in range(1, BLOCKS + 1):
        checkpoint_blocks(
            model, TrainSettings(gradient_checkpointing=blocks / BLOCKS - 0.01), lambda: loss(model)
        )
        needs[blocks] = fixed + peak(model)
    assert needs[1] > needs[2] > needs[4]
    for blocks in (1, 2, 3):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        settings = TrainSettings(
            gradient_checkpointing="auto", memory_gib=needs[blocks] * 1.005 / 2**30
        )
        checkpoint_blocks(model, settings, lambda: loss(model))
        entry = peftkit.record(model)["checkpointing"]
        assert entry["recomputed_blocks"] in (
            blocks,
            blocks + 1,
        )  # the last block may need a little more than the others
        assert sum(recomputed(model)) == entry["recomputed_blocks"]
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None for p in model.parameters())
        assert fixed + peak(model) <= settings.memory_gib * 2**30


def test_what_cannot_fit_or_be_is_refused(model):
    with pytest.raises(
        ConfigError, match=r"train.memory_gib is 0.0001, and a step needs .* GiB with all blocks"
    ):
        checkpoint_blocks(
            model,
            TrainSettings(gradient_checkpointing="auto", memory_gib=1e-4),
            lambda: loss(model),
        )
    with pytest.raises(ValueError, match="memory_gib needs gradient_checkpointing: auto"):
        TrainSettings(memory_gib=1.0)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        TrainSettings(gradient_checkpointing=1.5)


@pytest.mark.parametrize("method", METHODS)
def test_free_memory_is_the_budget_where_none_is_named(method):
    backbone = LlamaForCausalLM(llama_config(num_hidden_layers=BLOCKS)).requires_grad_(False)
    model = peftkit.attach(backbone, METHODS[method]())
    checkpoint_blocks(model, TrainSettings(gradient_checkpointing="auto"), lambda: loss(model))
    assert not any(recomputed(model))


def test_layers_of_gpt2_are_blocks_too():
    model = peftkit.attach(
        GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=320, n_positions=64)),
        peftkit.LoraConfig(),
    )
    checkpoint_blocks(model, TrainSettings(gradient_checkpointing=0.5), lambda: loss(model))
    assert [layer.gradient_checkpointing for layer in model.get_base_model().transformer.h] == [
        True,
        False,
    ]
