"""Files of rows: every format holds the same rows, and mistakes are named with their place."""

import datetime
import json
import sys

import pytest
from datasets import Dataset

from peftkit.data.column_names import rename_columns
from peftkit.data.row_files import read_rows
from peftkit.data.rows import Rows
from peftkit.errors import DataError
from peftkit.files import write_rows

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


def test_keys_that_only_some_messages_have_are_not_given_to_others(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": "Ann"}]},
        {"messages": [{"role": "user", "content": "b"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ("first", "other"):
        path.write_text(json.dumps({"text": text}) + "\n")
        assert read_rows(path) == [{"text": text}]


def test_columns_are_renamed():
    rows = rename_columns(Rows.of([{"conversation": 1, "other": 2}]), {"messages": "conversation"})
    assert rows == [{"messages": 1, "other": 2}]
    given = Rows.of([{"text": "body", "headline": "head", "label": 0}])
    assert rename_columns(given, {"text": "headline"}) == [{"text": "head", "label": 0}]
    assert rename_columns(given, {"text": "headline", "headline": "text"})[0]["headline"] == "body"
    assert (
        rename_columns(given, {"tags": "ner", "text": "body"}, optional=["tags", "text"]) == given
    )


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_values_are_read_as_they_are_written(tmp_path, ending):
    rows = [
        {"day": "2024-05-01T10:00:00", "n": 1, "x": [1, "a"]},
        {"day": "2024-05-02", "n": "one", "x": None},
    ]
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(map(json.dumps, rows)).encode())
    assert read_rows(path) == rows
    path.write_text(
        json.dumps([{"a": "x\u2028y"}, {"b": 1}], ensure_ascii=False, indent=1), encoding="utf-8"
    )
    assert read_rows(path) == [{"a": "x\u2028y"}, {"b": 1}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": 1\n', r"rows\.jsonl, line 2: Expecting"),
        (b'[{"a": 1},\n{"a" 1}]', r"rows\.jsonl, line 2: Expecting"),
        (
            b'{"a": 1}\n{"a": "\xff"}\n',
            r"rows\.jsonl, line 2, byte 8 .*0xff is not UTF-8; .*data\.encoding: cp1252",
        ),
        (b'{"a": 1}\n\n7\n', r"rows\.jsonl, row 3: 7 is not an object"),
        (b'[{"a": 1}, "x"]', r"rows\.jsonl, row 2: 'x' is not an object"),
        (b"[" * 100_000, r"rows\.jsonl, line 1: .*nested too deeply"),
        (b"\n \n", "holds no rows"),
        (b"[]", "holds no rows"),
    ],
)
def test_bad_json_is_named_with_its_line(tmp_path, data, message):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_dates_of_a_table_can_be_written(tmp_path):
    Dataset.from_list([{"day": datetime.datetime(2024, 5, 1)}]).to_parquet(
        tmp_path / "rows.parquet"
    )
    write_rows(tmp_path / "rows.jsonl", read_rows(tmp_path / "rows.parquet"))
    assert read_rows(tmp_path / "rows.jsonl") == [{"day": "2024-05-01 00:00:00"}]


def test_without_the_datasets_library_files_name_the_extra(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text\nx\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'peftkit\[recipes\]'"):
        read_rows(tmp_path / "rows.csv")
