"""Directories and patterns of data files."""

import pytest

from peftkit.data.row_files import list_sources, read_rows, source_directory
from peftkit.errors import DataError


def write(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text\n{name}\n" if name.endswith("csv") else f'{{"text": "{name}"}}\n'
        path.write_text(text)
    return directory


def texts(source):
    return [row["text"] for row in read_rows(source)]


def test_all_files_of_a_directory_are_read_in_their_order(tmp_path):
    write(tmp_path, "b.jsonl", "a.jsonl", "c/d.jsonl", ".hidden.jsonl", ".git/e.jsonl")
    (tmp_path / "README.md").write_text("# Rows")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert texts(tmp_path) == ["a.jsonl", "b.jsonl", "c/d.jsonl"]
    assert read_rows(tmp_path).where(1) == f"{tmp_path / 'b.jsonl'}, row 1"


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.jsonl", "dev.jsonl", "test.jsonl"),
        (
            "data/train-00000-of-00001.jsonl",
            "data/validation-00000-of-00001.jsonl",
            "data/test-0.jsonl",
        ),
        ("train/0.jsonl", "valid/0.jsonl", "eval/0.jsonl"),
        ("my_training.jsonl", "my_val.jsonl", "my_evaluation.jsonl"),
    ],
)
def test_names_of_files_say_the_split(tmp_path, train, validation, test):
    write(tmp_path, train, validation, test)
    assert texts(f"{tmp_path}:train") == [train]
    assert texts(f"{tmp_path}:validation") == texts(f"{tmp_path}:dev") == [validation]
    assert texts(f"{tmp_path}:test") == [test]
    with pytest.raises(
        DataError, match=r"test and train and validation: name one, such as .*:train"
    ):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="none called 'tests'"):
        read_rows(f"{tmp_path}:tests")


def test_one_split_need_not_be_named(tmp_path):
    write(tmp_path, "train-0.jsonl", "train-1.jsonl")
    assert texts(tmp_path) == ["train-0.jsonl", "train-1.jsonl"]
    with pytest.raises(DataError, match="has the splits train, and none called 'test'"):
        read_rows(f"{tmp_path}:test")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no data files"),
        (("a.jsonl", "b.csv"), r"holds \.csv and \.jsonl files: name one kind, such as .*/\*\.csv"),
        (
            ("train.jsonl", "more.jsonl"),
            r"more\.jsonl, which names no split, beside files of train",
        ),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path, *names))


def test_a_pattern_stands_for_its_files(tmp_path, monkeypatch):
    write(tmp_path, "b.jsonl", "a.jsonl", "c.csv", "d/e.jsonl", "odd[1].jsonl")
    assert texts(f"{tmp_path}/[ab].jsonl") == ["a.jsonl", "b.jsonl"]
    assert texts(f"{tmp_path}/**/e.*") == ["d/e.jsonl"]
    assert texts(tmp_path / "odd[1].jsonl") == ["odd[1].jsonl"]  # a name is no pattern
    assert texts([f"{tmp_path}/c.csv", f"{tmp_path}/a*"]) == ["c.csv", "a.jsonl"]
    with pytest.raises(DataError, match=r"no data file fits the pattern .*x\*"):
        read_rows(f"{tmp_path}/x*")
    monkeypatch.chdir(tmp_path)
    assert list_sources("*.jsonl") == ["a.jsonl", "b.jsonl", "odd[1].jsonl"]


def test_the_home_directory_can_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write(tmp_path, "a.jsonl")))
    assert texts("~/a.jsonl") == texts("~/a*") == texts("~") == ["a.jsonl"]


def test_files_that_rows_name_are_relative_to_what_was_named(tmp_path, monkeypatch):
    write(tmp_path, "a.jsonl", "data/train.jsonl")
    monkeypatch.chdir(tmp_path)
    assert source_directory("a.jsonl") == tmp_path
    assert source_directory(tmp_path / "data") == tmp_path / "data"
    assert source_directory("data:train") == tmp_path / "data"
    assert source_directory("hub:owner/name") == source_directory([{"a": 1}]) == tmp_path


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "nothing.jsonl", "/dev/null/x.jsonl"])
def test_a_path_that_cannot_be_is_named(name):
    with pytest.raises(DataError, match=r"no data file at|cannot read"):
        read_rows(name)
