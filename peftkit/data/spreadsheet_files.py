"""Spreadsheets of Excel (.xlsx): one sheet, whose first row names the columns."""

import datetime
import json
from collections.abc import Iterator
from typing import Any

from peftkit.data.data_file import DataFile
from peftkit.data.json_files import to_batches
from peftkit.data.table_files import check_names
from peftkit.errors import DataError, nearest


def read_xlsx(file: DataFile) -> Iterator[Any]:
    """Yield Arrow batches of JSON texts, one for each row of the sheet that is not empty.

    A number that is whole is written so (3, not 3.0), and a date as ISO text.
    """
    yield from to_batches(_rows(file))


def _rows(file: DataFile) -> Iterator[tuple[int, str]]:
    """Yield the row of each number of the sheet, as JSON."""
    columns: list[str] | None = None
    for number, cells in _cells(file):
        if all(cell is None for cell in cells):
            continue
        if columns is None:
            columns = check_names(file, _without_end(cells))
            continue
        if any(cell is not None for cell in cells[len(columns) :]):
            raise DataError(
                f"{file.path}, sheet row {number} has a cell in a column that has no name"
            )
        values = {}
        for column, cell in zip(columns, cells, strict=False):
            if cell is not None:
                values[column] = cell
        yield number, json.dumps(dict.fromkeys(columns) | values)


def _cells(file: DataFile) -> Iterator[tuple[int, list[Any]]]:
    """Yield the values in each row of the sheet, and the row's number."""
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as problem:
        raise DataError(
            f"{file.path}: .xlsx files need the openpyxl library: pip install 'peftkit[recipes]'"
        ) from problem

    try:
        with file.reading(), file.open() as source, file.open() as again:
            values = _sheet(file, load_workbook(source, read_only=True, data_only=True))
            formulas = _sheet(file, load_workbook(again, read_only=True))
            pairs = zip(values.iter_rows(), formulas.iter_rows(), strict=True)
            for number, (shown, written) in enumerate(pairs, 1):
                cells = []
                for cell, formula in zip(shown, written, strict=True):
                    cells.append(_to_json(file, cell, formula.value))
                yield number, cells
    except DataError:
        raise
    except Exception as problem:  # openpyxl raises what it stumbles over
        raise DataError(f"cannot read {file.path}: {problem}; it is damaged") from problem


def _sheet(file: DataFile, workbook: Any) -> Any:
    """Return the sheet that is named, or the only one that has cells.

    Raises:
        DataError: there is no such sheet, or several have cells.
    """
    sheets = {sheet.title: sheet for sheet in workbook.worksheets}
    if file.part is not None:
        if file.part not in sheets:
            raise DataError(
                f"{file.path} has the sheets {', '.join(sheets)}, and none called {file.part!r}"
                f"{nearest(file.part, sheets)}"
            )
        return sheets[file.part]
    filled = []
    for title, sheet in sheets.items():
        if any(cell is not None for row in sheet.iter_rows(values_only=True) for cell in row):
            filled.append(title)
    if not filled:
        raise DataError(f"{file.path} holds no rows")
    if len(filled) > 1:
        raise DataError(
            f"{file.path} has the sheets {', '.join(filled)}: name one, such as "
            f"{file.path}:{filled[0]}"
        )
    return sheets[filled[0]]


def _to_json(file: DataFile, cell: Any, formula: Any) -> Any:
    """Return the value of a cell as JSON has it; None for an empty one."""
    value = cell.value
    if value is None and isinstance(formula, str) and formula.startswith("="):
        raise DataError(
            f"{file.path}: cell {cell.coordinate} holds a formula without its result; open the "
            "file in a spreadsheet program, and save it"
        )
    if getattr(cell, "data_type", None) == "e":
        raise DataError(f"{file.path}: cell {cell.coordinate} holds the error {value}")
    if isinstance(value, str):
        return value or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time()
        return value.date().isoformat() if is_day else value.isoformat(timespec="seconds")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    return value


def _without_end(cells: list[Any]) -> list[Any]:
    """Return cells without the empty ones at the end."""
    cells = list(cells)
    while cells and cells[-1] is None:
        cells.pop()
    return cells
