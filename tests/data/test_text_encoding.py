"""Many texts are tokenised at once as each is alone, and those that are cut are counted."""

from collections import Counter

import pytest
from transformers import ByT5Tokenizer

import peftkit
from peftkit.data.text_encoding import cut, encode_pairs, encode_targets, encode_texts
from tests.recipes.jobs import MODELS

TEXTS = ["Anna saw Rome", "an", "seven..", "eight...", "👩\u200d👩 \u2028", "x" * 100]


@pytest.fixture(params=["fast", "slow"])
def any_tokenizer(request):
    if request.param == "slow":
        return ByT5Tokenizer()
    return peftkit.load_tokenizer(MODELS / "char-bert-zh" / "config.json")


@pytest.mark.parametrize("max_length", [4, 9, 10, 300])
def test_a_text_among_others_is_tokenised_as_it_is_alone(any_tokenizer, max_length):
    counts = Counter()
    found = encode_texts(any_tokenizer, TEXTS, counts, max_length=max_length)
    alone = [any_tokenizer(text, truncation=True, max_length=max_length) for text in TEXTS]
    assert list(map(repr, found)) == list(map(repr, alone))
    lengths = [len(any_tokenizer(text)["input_ids"]) for text in TEXTS]
    assert counts["cut"] == sum(length > max_length for length in lengths)
    targets = encode_targets(any_tokenizer, TEXTS, counts, max_length=max_length)
    assert targets == [encoding["input_ids"] for encoding in alone]


@pytest.mark.parametrize("max_length", [5, 9, 19, 300])
def test_a_pair_among_others_is_tokenised_as_it_is_alone(max_length):
    tokenizer = peftkit.load_tokenizer(MODELS / "char-bert-zh" / "config.json")
    others = TEXTS[::-1]
    counts = Counter()
    found = encode_pairs(tokenizer, TEXTS, others, counts, max_length=max_length)
    lengths = []
    for encoding, text, other in zip(found, TEXTS, others, strict=True):
        assert encoding == dict(tokenizer(text, other, truncation=True, max_length=max_length))
        lengths.append(len(tokenizer(text, other)["input_ids"]))
    assert counts["cut"] == sum(length > max_length for length in lengths)


def test_a_text_as_long_as_an_example_is_not_cut(tokenizer):
    counts = Counter()
    length = len(tokenizer("seven..")["input_ids"])
    encode_texts(tokenizer, ["seven.."], counts, max_length=length)
    assert counts["cut"] == 0
    encode_texts(tokenizer, ["seven.."], counts, max_length=length - 1)
    assert counts["cut"] == 1


def test_tokens_are_cut_and_counted():
    counts = Counter()
    assert cut([[1, 2, 3], [1, 2], []], counts, max_length=2) == [[1, 2], [1, 2], []]
    assert counts["cut"] == 1


def test_a_pair_without_a_separator_gets_a_line_break(tokenizer):
    assert tokenizer.num_special_tokens_to_add(pair=True) == 0
    [encoding] = encode_pairs(tokenizer, ["a"], ["b"], Counter(), max_length=9)
    assert encoding == dict(tokenizer("a\nb"))
