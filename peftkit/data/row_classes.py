"""The classes of rows, as numbers."""

from typing import Any

import numpy as np

from peftkit.data.rows import Row, Rows


def class_numbers(rows: Rows, column: str) -> tuple[Any, list[str]]:
    """Return the number of each row's class, an array (rows,), and the names of the classes.

    Args:
        rows: Rows with a class; each is read once.
        column: The column that holds it.
    """
    names: dict[str, int] = {}

    def read(row: Row) -> int:
        return names.setdefault(str(row.get(column)), len(names))

    found = np.fromiter(map(read, rows), dtype=np.int32, count=len(rows))
    return found, list(names)
