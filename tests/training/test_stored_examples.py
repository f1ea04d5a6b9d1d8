"""A training on examples in files is, to the bit, the one on the same examples in memory."""

import pytest
import torch

from peftkit.data import encoding_processes, stored_examples
from peftkit.data.packing import PadPacks, pack_examples
from peftkit.data.rows import Rows
from peftkit.data.stored_examples import StoredExamples, encode_rows
from peftkit.data.supervised_tokens import Example
from peftkit.errors import CheckpointError
from peftkit.training.metrics_log import read_metrics
from tests.training.job import Disturbance, ragged_examples, train, trained, weighted

COUNT = 60


def encode(rows, counts):
    return [[Example(**row)] for row in rows]


@pytest.fixture
def in_files(tmp_path, monkeypatch):
    """Return a function that puts examples into the files of several processes."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_examples, "_FEW_ROWS", 0)
    monkeypatch.setattr(encoding_processes, "_processes", lambda: 3)
    monkeypatch.setattr(encoding_processes, "_ROWS_OF_A_PROCESS", 1)

    def store(examples):
        rows = Rows.of([vars(example) for example in examples])
        stored, _ = encode_rows(rows, encode, Example, lambda: "", "examples")
        assert isinstance(stored, StoredExamples)
        return stored

    return store


def losses(run_dir):
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize("settings", [{}, {"group_by_length": True, "accumulate": 2}])
@pytest.mark.parametrize("weights", [(), (2.0, 0.5)])
def test_losses_and_weights_are_the_same(llama_dir, tmp_path, in_files, settings, weights):
    settings = {"batch_size": 4, "epochs": 2} | settings
    examples = weighted(ragged_examples(COUNT), weights)
    options = {"settings": settings, "model_dir": llama_dir, "evaluation": examples[:9]}
    expected, _ = train(tmp_path / "memory", examples=examples, **options)
    found, _ = train(tmp_path / "files", examples=in_files(examples), **options)
    assert losses(tmp_path / "files") == losses(tmp_path / "memory")
    for name, parameter in trained(expected).items():
        assert torch.equal(parameter, trained(found)[name]), name


def test_packs_are_the_same(llama_dir, tmp_path, in_files):
    examples = ragged_examples(COUNT)
    kept, stored = pack_examples(examples, 64), pack_examples(in_files(examples), 64)
    assert list(stored) == list(kept)
    assert stored.lengths.tolist() == list(map(len, kept))
    assert (
        PadPacks(0)(stored[:2])["input_ids"].tolist() == PadPacks(0)(kept[:2])["input_ids"].tolist()
    )


def test_a_run_is_resumed_on_files_that_were_made_again_and_not_on_others(
    llama_dir, tmp_path, in_files, monkeypatch
):
    examples = ragged_examples(COUNT)
    settings = {"batch_size": 4, "epochs": 2, "save_every": 5}
    expected, _ = train(tmp_path / "whole", llama_dir, settings, examples=in_files(examples))

    crash = [Disturbance(crash_at=7)]
    with pytest.raises(RuntimeError, match="crashed as it was told to"):
        train(tmp_path / "run", llama_dir, settings, examples=in_files(examples), callbacks=crash)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr(encoding_processes, "_processes", lambda: 2)
    with pytest.raises(CheckpointError, match="other training examples"):
        train(tmp_path / "run", llama_dir, settings, examples=in_files(examples[1:]))
    found, _ = train(tmp_path / "run", llama_dir, settings, examples=in_files(examples))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for name, parameter in trained(expected).items():
        assert torch.equal(parameter, trained(found)[name]), name
