"""What stands in the columns of a table: texts, files, labels and scores, checked, in one form.

What is missing or blank raises an `EmptyRowError`: `data.skip_empty` leaves such rows out.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from peftkit.data.class_names import class_name
from peftkit.data.row_values import check_text, quote
from peftkit.errors import DataError, EmptyRowError

ReadValue = Callable[[Any, str], Any]
"""Returns the value of a column, given what stands there and the column's name."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def read_text(value: Any, column: str) -> str:
    """Return a text that is not blank."""
    _check_not_blank(value, repr(column))
    return check_text(value, repr(column))


def read_any_text(value: Any, column: str) -> str:
    """Return a text, which may be blank: a model predicts something for it, too."""
    return check_text(value, repr(column))


def read_path(value: Any, column: str) -> str:
    """Return the path of a local file, which need not exist."""
    _check_not_blank(value, repr(column))
    if not isinstance(value, str):
        raise DataError(f"{column!r} is {quote(value)}; it must be the path of a file")
    if _ADDRESS.match(value):
        raise DataError(
            f"{column!r} is the address {quote(value)}: download the file, and write its path"
        )
    return check_text(value, repr(column))


def read_label(value: Any, column: str) -> str:
    """Return the text that names a class, as `class_name` does; true and false are labels, too."""
    _check_not_blank(value, "the label")
    if isinstance(value, bool):
        return str(value).lower()
    return class_name(value, repr(column))


def read_score(value: Any, column: str) -> int | float:
    """Return a finite number; a text may spell it, with a decimal point."""
    _check_not_blank(value, "the score")
    number = value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not _is_finite(number):
        raise DataError(
            f"{column!r} is {quote(value)}; it must be a number, with a point before decimals"
        )
    return number  # type: ignore[no-any-return]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float can hold
        return False


def _check_not_blank(value: Any, what: str) -> None:
    if value is None:
        raise EmptyRowError(f"{what} is missing: leave the row out, or set data.skip_empty")
    if isinstance(value, str) and not value.strip():
        raise EmptyRowError(f"{what} is blank: leave the row out, or set data.skip_empty")
