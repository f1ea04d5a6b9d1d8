"""What the lint reads of a row, and what it finds."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SHOWN = 3  # rows that a finding names


@dataclasses.dataclass(frozen=True, slots=True)
class LintItem:
    """The parts of a row that the lint looks at."""

    where: str
    """The row's place, as ``FILE, row N``."""
    text: str = ""
    """What is read, such as a prompt or the text to classify."""
    answer: str | None = None
    """The text that is learned; None where all of `text` is learned, or a label."""
    labels: tuple[str, ...] = ()
    """The row's label; or, of a row with a label for each word, each of these labels once."""
    file: str = ""
    """A file that is read, such as an image."""

    @property
    def learned(self) -> str | None:
        """The text that is learned; None in a row with labels."""
        if self.answer is None and not self.labels and not self.file:
            return self.text
        return self.answer

    @property
    def content(self) -> str:
        """All text of the row."""
        return self.text if self.answer is None else f"{self.text}\n{self.answer}"


class LintItems(Sequence[LintItem]):
    """The items of rows, each made when it is asked for.

    Args:
        rows: Rows of one or several files.
        item: Makes the item of a row, given the row and its place.
        where: Returns the place of a row, given its number from 0, as ``FILE, row N``.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        item: Callable[[dict[str, Any], str], LintItem],
        where: Callable[[int], str],
    ) -> None:
        self._rows = rows
        self._item = item
        self._where = where

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        return self._item(self._rows[number], self._where(number))

    def __iter__(self) -> Iterator[LintItem]:
        for number, row in enumerate(self._rows):
            yield self._item(row, self._where(number))


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


def likened(item: LintItem, other: LintItem) -> str:
    """Return the places of two items that are alike, the file once if both are in it."""
    file, _, row = other.where.rpartition(", ")
    is_same_file = file == item.where.rpartition(", ")[0]
    return f"{item.where} = {row if is_same_file else other.where}"


def either(count: int, singular: str, plural: str) -> str:
    """Return `singular` for one, and `plural` for any other count."""
    return singular if count == 1 else plural
