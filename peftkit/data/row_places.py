"""Where rows stand, in words."""

from collections.abc import Sequence
from typing import Any

from peftkit.data.rows import Rows

_MOST = 10  # rows that are named


def describe_places(rows: Rows, numbers: Sequence[int] | Any) -> str:
    """Return where rows stand, such as "rows 2 and 17 of prices.jsonl"; of many, the first ten."""
    by_file: dict[str, list[str]] = {}
    for number in numbers[:_MOST]:
        file, _, row = rows.where(int(number)).rpartition(", row ")
        by_file.setdefault(file, []).append(row)
    named = []
    for file, places in by_file.items():
        *before, last = places
        listed = f"rows {', '.join(before)} and {last}" if before else f"row {last}"
        named.append(f"{listed} of {file}")
    more = len(numbers) - _MOST
    return ", ".join(named) + (f", and {more:,} more" if more > 0 else "")
