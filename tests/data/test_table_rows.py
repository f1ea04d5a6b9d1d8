"""Rows have the columns that a task needs, and mistakes are named with their row."""

import pytest

from peftkit.data.table_rows import read_file_rows, read_table_rows
from peftkit.data.table_values import read_label, read_text
from peftkit.errors import DataError, EmptyRowError
from tests.recipes.jobs import write_jsonl

COLUMNS = {"text": read_text, "label": read_label}


def test_columns_of_a_table_are_renamed_and_checked(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"review": "a", "stars": 4}, {"review": "b", "stars": 5}]
    )
    rows = read_table_rows(path, COLUMNS, {"text": "review", "label": "stars"})
    assert rows == [{"text": "a", "label": "4"}, {"text": "b", "label": "5"}]
    with pytest.raises(
        DataError, match=r"has the columns 'review', 'stars' and no 'text'.*data\.columns"
    ):
        read_table_rows(path, COLUMNS, {})
    with pytest.raises(DataError, match=r"no column 'revew'.*did you mean 'review'"):
        read_table_rows(path, COLUMNS, {"text": "revew"})


def test_a_column_called_otherwise_is_told_how_to_name_it(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"ticket": "a", "lable": "x"}])
    message = r"no 'text' and no 'label'.*set data\.columns: {text: ticket, label: lable}"
    with pytest.raises(DataError, match=message):
        read_table_rows(path, COLUMNS, {})


def test_a_bad_value_is_named_with_its_file_and_row(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": 1.5}, {"text": " ", "label": "x"}]
    rows = read_table_rows(write_jsonl(tmp_path / "rows.jsonl", rows), COLUMNS, {})
    with pytest.raises(
        DataError, match=r"rows\.jsonl, row 2: 'label' is 1.5; it must be a text or"
    ):
        rows[1]
    with pytest.raises(EmptyRowError, match=r"rows\.jsonl, row 3: 'text' is blank: leave the row"):
        rows[2]


def test_rows_may_be_in_memory():
    rows = [{"text": "a", "label": 1}]
    assert read_table_rows(rows, COLUMNS, {}) == [{"text": "a", "label": "1"}]
    with pytest.raises(DataError, match=r"no 'label'.*data\.columns: {label: lable}"):
        read_table_rows([{"text": "a", "lable": 1}], COLUMNS, {})


def test_rows_that_name_files_of_another_directory_are_other_rows(tmp_path):
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
        path = write_jsonl(tmp_path / name / "rows.jsonl", [{"image": "a.png", "label": "x"}])
        columns = {"image": read_text, "label": read_label}
        found.append(read_file_rows(path, columns, {}, file_column="image"))
    first, second = found
    assert first[0]["image"] != second[0]["image"]
    assert first.digest != second.digest
    assert (
        first.digest
        == read_file_rows(
            tmp_path / "first" / "rows.jsonl", columns, {}, file_column="image"
        ).digest
    )
