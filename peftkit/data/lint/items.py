"""What the lint reads of a row, and what it finds."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError, EmptyRowError

SHOWN = 3  # rows that a finding names


@dataclasses.dataclass(frozen=True, slots=True)
class LintItem:
    """The parts of a row that the lint looks at."""

    where: str
    """The row's place, as ``FILE, row N``."""
    text: str = ""
    """What is read, such as a prompt or the text to classify."""
    other: str = ""
    """The second text of a pair."""
    answer: str | None = None
    """The text that is learned; None if a label or a number is learned."""
    labels: tuple[str, ...] = ()
    """The row's label; or, of a row with a label for each word, each of these labels once."""
    file: str = ""
    """A file that is read, such as an image."""
    problem: str = ""
    """Why the row cannot be read; empty if it can."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The texts of the row: what is read, and what is learned."""
        return self.text, self.other, self.answer or ""

    @property
    def content(self) -> str:
        """All text of the row."""
        return "\n".join(filter(None, self.parts))


class LintItems(Sequence[LintItem]):
    """The items of rows, each made when it is asked for.

    That of an empty row has an empty answer, and that of a row that cannot be read has a problem.

    Args:
        rows: Rows of one or several files.
        item: Makes the item of a row, given the row and its place.
    """

    def __init__(self, rows: Rows, item: Callable[[Row, str], LintItem]) -> None:
        self._rows = rows
        self._item = item

    def where(self, number: int) -> str:
        """Return the place of a row, without reading it."""
        return self._rows.where(number)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        where = self.where(number)
        try:
            return self._item(self._rows[number], where)
        except EmptyRowError:
            return LintItem(where, answer="")
        except DataError as problem:
            return LintItem(where, problem=str(problem).removeprefix(f"{where}: "))

    def __iter__(self) -> Iterator[LintItem]:
        for number in range(len(self)):
            yield self[number]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something in the data that is likely not meant. It is a warning, never an error."""

    kind: str
    """The check that found it, such as ``exact duplicates``."""
    count: int
    """How many rows, labels or texts it concerns."""
    what: str
    """The sentence that follows the count."""
    advice: str
    """What to do, as the end of the sentence."""
    rows: tuple[str, ...] = ()
    """Places of the first rows, at most three."""

    @property
    def sentence(self) -> str:
        """What was found, and what to do."""
        return f"{self.count:,} {self.what}: {self.advice}"


class NotDoneError(Exception):
    """A check could not be made; the message says why, and what to do."""


def not_done(check: str) -> NotDoneError:
    """Return what to raise where a check lacks its library."""
    return NotDoneError(f"{check} were not looked for: pip install 'peftkit[lint]'")


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` of the numbers from 0 to `count` - 1, evenly spread."""
    if count <= limit:
        return list(range(count))
    return [place * count // limit for place in range(limit)]


def shown(items: Sequence[LintItem], numbers: Sequence[int]) -> tuple[str, ...]:
    """Return the places of the first of some items."""
    return tuple(items[int(number)].where for number in numbers[:SHOWN])


def is_other_row(items: Sequence[LintItem], number: int, other: int) -> bool:
    """Whether two items are of different rows, and not of one that was drawn twice."""
    if isinstance(items, LintItems):
        return items.where(int(number)) != items.where(int(other))
    return items[number].where != items[other].where


def likened(item: LintItem, other: LintItem) -> str:
    """Return the places of two items that are alike; their file or directory is named once."""
    file, _, row = other.where.rpartition(", ")
    if file == item.where.rpartition(", ")[0]:
        return f"{item.where} = {row}"
    directory = item.where[: item.where.rfind("/") + 1]
    return f"{item.where} = {other.where.removeprefix(directory)}"


def either(count: int, singular: str, plural: str) -> str:
    """Return `singular` for one, and `plural` for any other count."""
    return singular if count == 1 else plural
