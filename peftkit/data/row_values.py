"""Values in a row, checked: texts, and JSON that may itself be written as a text."""

import json
from typing import Any, NoReturn

from peftkit.errors import DataError

_SHOWN_CHARACTERS = 80


def quote(value: object) -> str:
    """Return a value as messages show it: as Python writes it, and not too long."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def check_text(value: object, place: str) -> str:
    """Return a value that is a text.

    Args:
        value: What stands in the row.
        place: What messages call it, such as "'prompt'" or "the user's message".

    Raises:
        DataError: it is not a text, or it holds half of a surrogate pair. No encoding can write
            one, so no tokenizer reads it.
    """
    if not isinstance(value, str):
        raise DataError(f"{place} is {quote(value)}; it must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        half = ascii(value[problem.start])[1:-1]
        raise DataError(
            f"{place} holds half of a surrogate pair ({half}), which is not a character: write the "
            "whole character, or leave it out"
        ) from None
    return value


def parse_json(value: object, place: str) -> Any:
    """Return what a JSON text holds, and any other value as it is. An empty text holds None.

    CSV files hold lists as JSON texts, and so do some columns of other files.

    Raises:
        DataError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{quote(value)} is not JSON, as {place} must be: {problem}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def check_json(value: object, place: str) -> None:
    """Check that a chat template can write a value as JSON.

    Raises:
        DataError: it cannot, or a text in it holds half of a surrogate pair.
    """
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise DataError(f"{place} cannot be written as JSON: {problem}") from None
    check_text(written, place)
