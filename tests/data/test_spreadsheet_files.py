"""Sheets of Excel: texts, numbers and dates as a reader of the sheet sees them."""

import datetime
import zipfile

import openpyxl
import pytest

from peftkit.data.row_files import read_rows
from peftkit.errors import DataError


def write(path, **sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_values_are_as_the_sheet_shows_them(tmp_path):
    path = write(
        tmp_path / "rows.xlsx",
        Sheet=[
            [" text ", "label", "day", "at", None],
            ["007", 3.0, datetime.date(2024, 5, 1), datetime.datetime(2024, 5, 1, 12, 30)],
            ["NA", 2.5, datetime.time(8, 0)],
            [None, None, None],
            ["x\ny", True, None, None],
        ],
    )
    assert read_rows(path) == [
        {"text": "007", "label": 3, "day": "2024-05-01", "at": "2024-05-01T12:30:00"},
        {"text": "NA", "label": 2.5, "day": "08:00:00", "at": None},
        {"text": "x\ny", "label": True, "day": None, "at": None},
    ]
    assert isinstance(read_rows(path)[0]["label"], int)
    assert read_rows(path).where(2) == f"{path}, sheet row 5"


def test_a_sheet_is_named_where_several_have_cells(tmp_path):
    rows = [["text"], ["x"]]
    path = write(tmp_path / "one.xlsx", First=rows, Second=[])
    assert read_rows(path) == [{"text": "x"}]
    path = write(tmp_path / "rows.xlsx", First=rows, Second=[["text"], ["y"]], Third=[])
    with pytest.raises(
        DataError, match=r"the sheets First, Second: name one, such as .*xlsx:First"
    ):
        read_rows(path)
    assert read_rows(f"{path}:Second") == [{"text": "y"}]
    with pytest.raises(DataError, match=r"none called 'Secnd'; did you mean 'Second'\?"):
        read_rows(f"{path}:Secnd")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["text", None, "label"], ["a", "b", "c"]], "column 2 has no name"),
        ([["text", "text"], ["a", "b"]], "two columns are called 'text'"),
        ([["text"], ["a", "b"]], "sheet row 2 has a cell in a column that has no name"),
        ([["text"], ["=1+1"]], "cell A2 holds a formula without its result"),
        ([["text"], ["#DIV/0!"]], "cell A2 holds the error #DIV/0!"),
        ([["text"]], "holds no rows"),
        ([], "holds no rows"),
    ],
)
def test_what_is_wrong_with_a_sheet_is_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / "rows.xlsx", Sheet=rows))


def test_a_damaged_workbook_is_named(tmp_path):
    whole = write(tmp_path / "rows.xlsx", Sheet=[["text"], ["x"]]).read_bytes()
    for number, data in enumerate([b"", whole[: len(whole) // 2], b"no workbook"]):
        (tmp_path / f"{number}.xlsx").write_bytes(data)
        with pytest.raises(DataError, match=rf"{number}\.xlsx: .*it is damaged"):
            read_rows(tmp_path / f"{number}.xlsx")
    with zipfile.ZipFile(tmp_path / "rows.xlsx") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["xl/worksheets/sheet1.xml"] = files["xl/worksheets/sheet1.xml"][:-30]
    with zipfile.ZipFile(tmp_path / "cut.xlsx", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match=r"cut\.xlsx: .*it is damaged"):
        read_rows(tmp_path / "cut.xlsx")
