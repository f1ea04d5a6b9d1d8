"""The lean step against the plain one on some odd architectures; all of them: `python -m
benchmarks.lean_coverage`.
"""

import pytest

from benchmarks import lean_coverage_checks, zoo

IN_CHUNKS = "in chunks of tokens"
CASES = {
    ("causal-lm", "gpt2"): IN_CHUNKS,  # Conv1D
    ("causal-lm", "gemma2"): IN_CHUNKS,  # capped logits
    ("causal-lm", "mixtral"): IN_CHUNKS,  # losses of routers
    ("causal-lm", "falcon_h1"): IN_CHUNKS,  # a state space beside the attention, and scaled logits
    ("causal-lm", "big_bird"): IN_CHUNKS,  # its first pass makes modules
    ("causal-lm", "prophetnet"): "the model's own",  # logits for several tokens ahead
    (
        "causal-lm",
        "trocr",
    ): IN_CHUNKS,  # does not shift its labels, and rounds its loss to the logits' 16 bits
    ("causal-lm", "reformer"): IN_CHUNKS,  # computes its layers again in the backward pass
    ("seq2seq-lm", "t5"): IN_CHUNKS,
    ("seq2seq-lm", "fsmt"): "it is called inside of the body",
    ("seq2seq-lm", "granite_speech"): "the shape of the mask",  # adds in place to what a norm gave
    (
        "sequence-classification",
        "flaubert",
    ): "calls no output embedding",  # dropout inside of feed-forward parts
    ("speech-seq2seq", "whisper"): IN_CHUNKS,
    (
        "image-classification",
        "resnet",
    ): "calls no output embedding",  # ReLU, of which nothing can be saved
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pair", CASES, ids="-".join)
def test_lean_steps_give_the_numbers_of_plain_ones(pair):
    assert zoo.Pair(*pair) in zoo.pairs()
    found = lean_coverage_checks.examine(*pair)
    assert found["outcome"] == "ok", found["reason"]
    assert CASES[pair].lower() in found["loss"].lower()
    assert CASES[pair].lower() in found["loss_bfloat16"].lower()
    assert found["bytes_lean"] <= found["bytes_plain"]
    assert not found["layers_missed"]
