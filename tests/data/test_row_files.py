"""Files of rows: every format holds the same rows, and mistakes are named with their place."""

import json
import sys

import pytest
from datasets import Dataset

from peftkit.data.row_files import read_rows
from peftkit.errors import DataError

ROWS = [{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "é£"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    data = Dataset.from_list(ROWS)
    if ending == "csv":
        data.to_csv(path)
    elif ending == "parquet":
        data.to_parquet(path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(ROWS))
    assert read_rows(path) == ROWS


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ("first", "other"):
        path.write_text(json.dumps({"text": text}) + "\n")
        assert read_rows(path) == [{"text": text}]


def test_without_the_datasets_library_files_name_the_extra(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text\nx\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'peftkit\[recipes\]'"):
        read_rows(tmp_path / "rows.csv")


def test_who_waits_for_a_large_file_sees_how_many_rows_were_read(monkeypatch, capsys, tmp_path):
    from tqdm import tqdm

    def at_once(**options):
        return tqdm(**(options | {"delay": 0, "mininterval": 0, "leave": True}))

    monkeypatch.setattr("peftkit.data.row_files.tqdm", at_once)
    path = tmp_path / "prices.jsonl"
    path.write_text('{"a": 1}\n' * 7)
    assert len(read_rows(path)) == 7
    assert "reading prices.jsonl: 7 rows" in capsys.readouterr().err
