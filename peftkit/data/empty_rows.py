"""Rows that hold nothing to learn from: found in one pass, and left out."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.encoding_processes import in_processes
from peftkit.data.row_places import describe_places
from peftkit.data.rows import Rows
from peftkit.errors import DataError, EmptyRowError

_ROWS_BETWEEN_REPORTS = 256


def leave_out_empty(rows: Rows) -> tuple[Rows, list[str]]:
    """Return the rows without those whose reading raises an `EmptyRowError`.

    Each row is read once, by several processes where there are many. What is kept is a number for
    each row that stays.

    Returns:
        The rows, and a line that says which ones were left out; no line if none was.

    Raises:
        DataError: every row is empty; or a row cannot be read for another reason.
    """
    empty = _empty_numbers(rows)
    if not len(empty):
        return rows, []
    count = f"{len(empty):,} of {len(rows):,} rows"
    places = describe_places(rows, empty)
    if len(empty) == len(rows):
        raise DataError(f"data.skip_empty leaves no row: {count} are empty ({places})")
    stays = np.ones(len(rows), dtype=bool)
    stays[empty] = False
    line = f"data.skip_empty left out {count}: {places}"
    return rows.select(np.flatnonzero(stays)), [line]


def _empty_numbers(rows: Rows) -> Any:
    """Return the numbers of the empty rows, an array in their order."""

    def scan(numbers: range, file: Path, advance: Callable[[int], None]) -> dict[str, int]:
        found = []
        for place, number in enumerate(numbers, 1):
            try:
                rows[number]
            except EmptyRowError:
                found.append(number)
            if place % _ROWS_BETWEEN_REPORTS == 0:
                advance(_ROWS_BETWEEN_REPORTS)
        file.write_bytes(np.array(found, dtype=np.int64).tobytes())
        return {}

    with tempfile.TemporaryDirectory() as directory:
        in_processes(scan, len(rows), Path(directory), "empty rows")
        parts = [np.zeros(0, dtype=np.int64)]
        for file in sorted(Path(directory).iterdir()):
            parts.append(np.fromfile(file, dtype=np.int64))
    return np.concatenate(parts)
