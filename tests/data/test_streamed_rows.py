"""Rows that are read forward: each once, shuffled, in an order that the seed decides."""

import gzip
import json
import tracemalloc

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from peftkit.data import streamed_rows
from peftkit.data.streamed_rows import stream_rows
from peftkit.errors import DataError


def numbers(rows):
    return [row["n"] for row in rows]


def write(path, count, start=0):
    path.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps({"n": n}) + "\n" for n in range(start, start + count))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_each_row_comes_once_in_an_order_that_the_seed_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_rows, "_BUFFER_ROWS", 10)
    source = write(tmp_path / "rows.jsonl", 100)
    found = numbers(stream_rows(source, seed=1))
    assert sorted(found) == list(range(100))
    assert found != list(range(100))
    assert numbers(stream_rows(source, seed=1)) == found
    assert numbers(stream_rows(source, seed=2)) != found
    assert all(number <= place + 10 for place, number in enumerate(found))  # no look ahead


def test_files_come_in_a_random_order(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_rows, "_BUFFER_ROWS", 1)
    for part in range(5):
        write(tmp_path / "rows" / f"train-{part}.jsonl.gz", 2, 2 * part)
    for source in (str(tmp_path / "rows"), f"{tmp_path}/rows/*.gz"):
        orders = {tuple(numbers(stream_rows(source, seed=seed))) for seed in range(5)}
        assert {tuple(sorted(order)) for order in orders} == {tuple(range(10))}
        assert len(orders) == 5


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved", "list"])
def test_all_kinds_of_sources_can_be_read_forward(tmp_path, kind, capsys):
    data = Dataset.from_list([{"n": str(number)} for number in range(20)])
    source = str(tmp_path / f"rows.{kind}")
    if kind == "csv":
        data.to_csv(source)
    elif kind == "parquet":
        data.to_parquet(source)
    elif kind == "saved":
        data.save_to_disk(source)
    else:
        source = list(data)
    assert sorted(numbers(stream_rows(source, seed=0))) == sorted(data["n"])


def test_nothing_is_read_that_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_rows, "_BUFFER_ROWS", 3)
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n' * 10 + "broken\n")
    rows = stream_rows(str(tmp_path / "rows.jsonl"), seed=0)
    assert numbers(next(rows) for _ in range(5)) == [1] * 5
    with pytest.raises(DataError, match=r"rows\.jsonl, line 11: Expecting"):
        list(rows)


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_rows, "_BUFFER_ROWS", 10)
    monkeypatch.setattr("peftkit.data.data_file._SMALL_BYTES", 0)
    monkeypatch.setattr("peftkit.data.json_files._BATCH_CHARACTERS", 10_000)
    peaks = []
    for count in (2000, 20_000):
        source = write(tmp_path / f"{count}.jsonl", count)
        sum(1 for _ in stream_rows(source, seed=0))  # whatever is made once
        tracemalloc.start()
        assert sum(1 for _ in stream_rows(source, seed=0)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_the_hub_is_read_forward(monkeypatch):
    features = Features({"n": Value("int64"), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"n": [0, 1, 2], "label": [0, 1, -1]}, features=features)
    asked = {}

    def load_dataset(path, **arguments):
        asked.update(arguments)
        stream = data.to_iterable_dataset()
        return stream if arguments["split"] else datasets.IterableDatasetDict(train=stream)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("hub:owner/name:train", "hub:owner/name"):
        rows = sorted(stream_rows(source, seed=0), key=lambda row: row["n"])
        assert [row["label"] for row in rows] == ["bad", "good", None]
        assert asked["streaming"] is True


def test_a_connection_that_breaks_is_one_sentence(monkeypatch):
    class Broken:
        features = None

        def shuffle(self, **arguments):
            return self

        def __iter__(self):
            yield {"n": 1}
            raise ConnectionError("the peer is gone")

    monkeypatch.setattr(datasets, "load_dataset", lambda path, **arguments: Broken())
    with pytest.raises(DataError, match="cannot read hub:a/b:train: the peer is gone"):
        list(stream_rows("hub:a/b:train", seed=0))


def test_several_splits_must_be_told_apart(monkeypatch):
    both = DatasetDict(test=Dataset.from_list([]), train=Dataset.from_list([]))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **arguments: both)
    with pytest.raises(DataError, match="name one, such as hub:a/b:train"):
        list(stream_rows("hub:a/b", seed=0))
