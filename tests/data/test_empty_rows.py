import pytest

from peftkit.data.empty_rows import leave_out_empty
from peftkit.data.rows import Rows
from peftkit.errors import DataError, EmptyRowError


def refuse_empty(row):
    if row["text"] == "":
        raise EmptyRowError("'text' is empty")
    if row["text"] is None:
        raise DataError("'text' is null")
    return row


def rows_of(texts):
    return Rows.of([{"text": text} for text in texts], "prices.jsonl").map(refuse_empty)


def test_empty_rows_are_left_out_and_named():
    rows, lines = leave_out_empty(rows_of(["a", "", "b", "", "c"]))
    assert [row["text"] for row in rows] == ["a", "b", "c"]
    assert rows.where(1) == "prices.jsonl, row 3"
    assert lines == ["data.skip_empty left out 2 of 5 rows: rows 2 and 4 of prices.jsonl"]


def test_rows_without_an_empty_one_stay_as_they_are():
    rows = rows_of(["a", "b"])
    assert leave_out_empty(rows) == (rows, [])


def test_the_first_ten_empty_rows_of_several_files_are_named():
    rows = Rows.joined(
        [rows_of(["", "a"]), Rows.of([{"text": ""}] * 12, "more.csv").map(refuse_empty)]
    )
    _, lines = leave_out_empty(rows)
    assert lines == [
        "data.skip_empty left out 13 of 14 rows: row 1 of prices.jsonl, rows 1, 2, 3, 4, 5, 6, 7, "
        "8 and 9 of more.csv, and 3 more"
    ]


def test_rows_that_are_all_empty_are_refused():
    with pytest.raises(DataError, match=r"leaves no row: 2 of 2 rows are empty \(rows 1 and 2"):
        leave_out_empty(rows_of(["", ""]))


def test_a_row_with_another_mistake_is_refused_by_its_place():
    with pytest.raises(DataError, match=r"prices.jsonl, row 3: 'text' is null") as refusal:
        leave_out_empty(rows_of(["a", "", None]))
    assert not isinstance(refusal.value, EmptyRowError)


def test_several_processes_find_the_same_rows(monkeypatch):
    monkeypatch.setattr("peftkit.data.encoding_processes._processes", lambda: 3)
    texts = ["" if number % 1000 == 7 else "a" for number in range(7001)]
    rows, lines = leave_out_empty(rows_of(texts))
    assert len(rows) == 6994
    assert lines == [
        "data.skip_empty left out 7 of 7,001 rows: rows 8, 1008, 2008, 3008, 4008, 5008 and 6008 "
        "of prices.jsonl"
    ]
