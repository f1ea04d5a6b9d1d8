"""Examples in files are those in memory, whoever made them, and are made once."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from peftkit.data import encoding_processes
from peftkit.data.examples import data_digest, largest_token, lengths_of
from peftkit.data.rows import Rows
from peftkit.data.stored_examples import StoredExamples, encode_rows
from peftkit.data.supervised_tokens import Example
from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.tasks.classification import Encoded

MANY = 5000


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def rows_of(count):
    return Rows.of([{"number": number} for number in range(count)], "numbers.jsonl")


def encode(rows, counts):
    """Give row n the tokens n, n + 1, ... of which the last is learned; leave out every tenth."""
    found = []
    for row in rows:
        number = row["number"]
        ids = list(range(number, number + 2 + number % 5))
        examples = [Example(ids, [IGNORED] * (len(ids) - 1) + ids[-1:])]
        counts["left out"] += number % 10 == 0
        found.append(examples if number % 10 else [])
    return found


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_examples_in_files_are_those_in_memory(monkeypatch, processes):
    monkeypatch.setattr(encoding_processes, "_processes", lambda: processes)
    rows = rows_of(MANY)
    counts = Counter()
    expected = [example for examples in encode(rows, counts) for example in examples]
    stored, counted = encode_rows(rows, encode, Example, lambda: f"{processes}", "rows")
    assert isinstance(stored, StoredExamples)
    assert list(stored) == expected
    assert stored[-1] == expected[-1]
    assert stored[7:9] == expected[7:9]
    assert counted == counts == {"left out": MANY // 10}
    assert np.array_equal(lengths_of(stored), lengths_of(expected))
    assert largest_token(stored) == largest_token(expected) == MANY + 4


def test_the_digest_does_not_depend_on_who_made_the_files(monkeypatch):
    digests = set()
    for processes in (1, 2):
        monkeypatch.setattr(encoding_processes, "_processes", lambda count=processes: count)
        stored, _ = encode_rows(rows_of(MANY), encode, Example, lambda key=processes: f"{key}", "")
        digests.add(data_digest(stored))
    other, _ = encode_rows(rows_of(MANY + 2), encode, Example, lambda: "", "")
    assert len(digests) == 1
    assert data_digest(other) not in digests


def test_the_digest_of_texts_does_not_depend_on_who_made_the_files(monkeypatch):
    def name_images(rows, counts):
        return [[Encoded({"image": f"{row['number']}.png"}, 1)] for row in rows]

    digests = set()
    for processes in (1, 2):
        monkeypatch.setattr(encoding_processes, "_processes", lambda count=processes: count)
        key = f"images {processes}"
        stored, _ = encode_rows(rows_of(MANY), name_images, Encoded, lambda key=key: key, "")
        digests.add(data_digest(stored))
    assert len(digests) == 1
    assert stored[MANY - 1].features == {"image": f"{MANY - 1}.png"}


def test_the_weight_of_an_example_comes_back_and_is_in_the_digest():
    def weigh(rows, counts):
        found = encode(rows, counts)
        for examples in found:
            examples[:] = [replace(each, weight=1 + each.input_ids[0] % 2) for each in examples]
        return found

    plain, _ = encode_rows(rows_of(MANY), encode, Example, lambda: "plain", "")
    stored, _ = encode_rows(rows_of(MANY), weigh, Example, lambda: "weighed", "")
    assert [example.weight for example in stored[:4]] == [2, 1, 2, 1]
    assert data_digest(stored) != data_digest(plain)
    assert data_digest([Example([1], [1])]) != data_digest([Example([1], [1], 2.0)])


def test_examples_are_made_once():
    def refuse(rows, counts):
        raise AssertionError("they are there")

    first, _ = encode_rows(rows_of(MANY), encode, Example, lambda: "a", "rows")
    again, counts = encode_rows(rows_of(MANY), refuse, Example, lambda: "a", "rows")
    assert list(again) == list(first)
    assert counts["left out"] == MANY // 10


@pytest.mark.parametrize("label", [3, 0.25])
@pytest.mark.parametrize("teacher", [None, (0.25, 0.75)])
def test_features_labels_and_teachers_come_back_as_they_went(label, teacher):
    def encode_text(rows, counts):
        features = {"input_ids": [1, 2], "attention_mask": [1, 1], "image": "a.png"}
        return [[Encoded(features, label, teacher)] for _ in rows]

    stored, _ = encode_rows(rows_of(MANY), encode_text, Encoded, lambda: f"{label}{teacher}", "")
    expected = encode_text([{}], Counter())[0][0]
    assert stored[MANY - 1].features == expected.features
    assert stored[MANY - 1].label == label
    assert type(stored[MANY - 1].label) is type(label)
    assert stored[MANY - 1].teacher == (None if teacher is None else list(teacher))


@pytest.mark.parametrize("count", [20, MANY])
def test_the_first_row_that_cannot_be_encoded_is_named(monkeypatch, count):
    monkeypatch.setattr(encoding_processes, "_processes", lambda: 2)

    def refuse(rows, counts):
        if any(row["number"] in (11, 12, MANY - 1) for row in rows):
            raise DataError("it is no number")
        return encode(rows, counts)

    with pytest.raises(DataError, match=r"^numbers\.jsonl, row 12: it is no number$"):
        encode_rows(rows_of(count), refuse, Example, lambda: "refused", "rows")
    stored, _ = encode_rows(rows_of(count), encode, Example, lambda: "refused", "rows")
    assert len(stored) == count * 9 // 10


def test_of_two_processes_that_fail_at_the_same_time_the_first_is_heard(monkeypatch):
    def wait_for_all(reports):
        ready = []
        for report in reports:
            ready += wait([report])
        return ready

    def refuse(rows, counts):
        raise DataError("it is no number")

    wait = encoding_processes.wait
    monkeypatch.setattr(encoding_processes, "wait", wait_for_all)
    monkeypatch.setattr(encoding_processes, "_processes", lambda: 2)
    with pytest.raises(DataError, match=r"^numbers\.jsonl, row 1: it is no number$"):
        encode_rows(rows_of(MANY), refuse, Example, lambda: "both", "rows")


def test_a_process_that_is_killed_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding_processes, "_processes", lambda: 2)
    ours = os.getpid()

    def die(rows, counts):
        assert os.getpid() != ours
        os._exit(9)

    with pytest.raises(DataError, match="was killed"):
        encode_rows(rows_of(MANY), die, Example, lambda: "a", "rows")
    assert not [path for path in (tmp_path / "cache" / "data").iterdir() if path.is_dir()]


def encode_slowly(rows, counts):
    time.sleep(0.02)
    return encode(rows, counts)


def make_many(cache, encode_rows_with):
    """Make the examples of many rows in two processes."""
    os.environ["PEFTKIT_CACHE"] = cache
    encoding_processes._processes = lambda: 2
    encode_rows(rows_of(10 * MANY), encode_rows_with, Example, lambda: "killed", "rows")


def test_kills_in_the_middle_leave_nothing_half_written_and_no_process(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance, directory = random.Random(0), tmp_path / "cache" / "data"
    for _ in range(5):
        process = context.Process(target=make_many, args=(str(tmp_path / "cache"), encode_slowly))
        process.start()
        deadline = time.monotonic() + 60
        while not list(directory.glob(".*/*.arrow")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert not list(directory.glob("examples-*/"))  # what is there under its name is whole
    make_many(str(tmp_path / "cache"), encode)  # waits until the last orphan has let go of the lock
    assert [path.suffix for path in directory.iterdir() if path.name.startswith(".")] == []
    [made] = directory.glob("examples-*/")
    assert len(StoredExamples(made, Example)) == 9 * MANY


def test_neither_pandas_nor_datasets_is_imported_to_read_examples(tmp_path):
    """They take seconds, and tens of MiB in each process."""
    encode_rows(rows_of(MANY), encode, Example, lambda: "", "rows")
    [directory] = (tmp_path / "cache" / "data").glob("examples-*/")
    program = f"""
import sys
from pathlib import Path
from peftkit.data.stored_examples import StoredExamples
from peftkit.data.supervised_tokens import Example
stored = StoredExamples(Path({str(directory)!r}), Example)
assert stored[5].input_ids and stored.lengths.max() and stored.digest
assert not {{"pandas", "datasets"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
