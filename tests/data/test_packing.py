"""Blocks of long texts, and packs of short ones: no token is lost, and no text sees another."""

import pytest
import torch

import peftkit
from peftkit.data.packing import (
    PackBatch,
    PadPacks,
    check_packing,
    cut_into_blocks,
    pack_examples,
)
from peftkit.data.padding import PadRight
from peftkit.data.supervised_tokens import Example
from peftkit.errors import ConfigError
from peftkit.losses.base import CausalLMLoss
from tests.architectures import ARCHITECTURES

# The models that let the texts of a pack see each other, whatever their positions.
SEE_EACH_OTHER = {
    "bloom",
    "falcon",
    "gpt_oss",
    "jamba",
    "mamba",
    "mamba2",
    "qwen3_next",
}


def some_examples():
    generator = torch.Generator().manual_seed(0)
    examples = []
    for length in (5, 17, 9, 30, 3, 12):
        ids = torch.randint(4, 60, (length,), generator=generator).tolist()
        examples.append(Example(ids, list(ids)))
    return examples


def test_every_token_but_the_first_is_predicted_once_in_blocks():
    ids = list(range(10, 33))
    parts = cut_into_blocks(Example(ids, ids), 8)
    assert [token for part in parts for token in part.input_ids[1:]] == ids[1:]
    assert all(len(part) <= 8 for part in parts)
    assert cut_into_blocks(Example([1], [1]), 8) == [Example([1], [1])]


def test_packs_hold_every_text_and_predict_no_first_token():
    examples = some_examples()
    packs = pack_examples(examples, 32)
    assert sorted(length for pack in packs for length in pack.lengths) == sorted(map(len, examples))
    assert all(len(pack) <= 32 for pack in packs)
    assert sum(pack.supervised for pack in packs) == sum(example.supervised for example in examples)
    assert len(packs) == 3


def test_a_pack_has_the_loss_of_its_texts(llama_dir):
    model = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    examples, loss = some_examples(), CausalLMLoss()
    together = loss.sum(model, PadPacks(2)(pack_examples(examples, 32)))
    alone = sum(loss.sum(model, PadRight(2)([each])) for each in examples)
    assert float(together) == pytest.approx(float(alone), rel=1e-5)
    batch = PackBatch(2)(examples)
    assert batch["input_ids"].shape == (1, sum(map(len, examples)))
    assert float(loss.sum(model, batch)) == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", sorted(name for name, each in ARCHITECTURES.items() if each.task == "causal-lm")
)
def test_texts_of_a_pack_do_not_see_each_other_or_the_model_is_refused(name, attention):
    if ARCHITECTURES[name].inputs != "text":
        pytest.skip("packs are for texts alone")
    model = ARCHITECTURES[name].model()
    try:
        model.set_attn_implementation(attention)
    except ValueError:
        pytest.skip(f"transformers has no {attention} attention for it")
    try:
        check_packing(model, PadPacks(0), some_examples())
    except ConfigError:
        assert name in SEE_EACH_OTHER
    else:
        assert name not in SEE_EACH_OTHER
