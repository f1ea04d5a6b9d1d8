"""Labels and tags as the texts that name classes."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peftkit.data.row_values import check_text, quote
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


def class_name(value: object, place: str) -> str:
    """Return the text that names a class: the texts themselves, and whole numbers as texts.

    A whole number may be written as 1 or 1.0; many a tool makes floats of a column with a gap.

    Args:
        value: What stands in the row.
        place: What messages call it, such as "the label".

    Raises:
        DataError: it is neither a whole number nor a text, or the text is blank.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place} is {quote(value)}; it must be a text or a whole number")
    return check_text(value, place)


def sorted_names(names: Iterable[str], key: Callable[[str], Any] = str) -> list[str]:
    """Return names by value, if all of them are whole numbers, and else by `key`."""
    found = sorted(names, key=key)
    if all(map(_WHOLE_NUMBER.fullmatch, found)):
        found.sort(key=int)
    return found


def rename_classes(rows: Rows, names: Mapping[str, str]) -> Rows:
    """Return rows with other names for some of their labels, tags and labels of spans.

    Args:
        rows: Rows whose classes are texts already.
        names: The new name of each class that gets one.
    """
    if not names:
        return rows

    def rename(row: Row) -> Row:
        renamed = dict(row)
        if "label" in row:
            renamed["label"] = names.get(row["label"], row["label"])
        if "tags" in row:
            renamed["tags"] = [names.get(tag, tag) for tag in row["tags"]]
        if "spans" in row:
            spans = []
            for span in row["spans"]:
                spans.append(span | {"label": names.get(span["label"], span["label"])})
            renamed["spans"] = spans
        return renamed

    return rows.map(rename)


def find_variants(counts: Counter[str]) -> list[tuple[str, str]]:
    """Return the names that differ from a more frequent one only in case or white space.

    Args:
        counts: How often each name occurs.

    Returns:
        Each such name, with the one that occurs more often.
    """
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name, _ in counts.most_common():
        alike[" ".join(name.casefold().split())].append(name)
    found = []
    for first, *others in alike.values():
        for name in others:
            found.append((name, first))
    return found
