"""How many rows, examples and tokens there are, how long examples are, and what is learned."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_MOST_BINS = 24


@dataclasses.dataclass(frozen=True)
class Bin:
    """How many examples have a length from `start` to `end`, both included."""

    start: int
    end: int
    count: int


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure with its name, and a few words more; they may be empty."""

    name: str
    value: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.detail})" if self.detail else self.value


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Figures of the rows of an epoch, or of some of them.

    Attributes:
        rows: How many rows an epoch has.
        seen_rows: How many of them the figures are of.
        lengths: The length of each example in tokens, an array (examples,); 0 for a picture.
        learned: How many tokens are learned; None where the loss is not on tokens.
        units: How many examples training takes: packs, where examples are packed.
        step_size: How many of these a step takes.
        max_length: The longest that an example may be, or None.
        formats: The formats of the rows, and how many have each.
        classes: What is to be predicted, and how often; none for texts.
    """

    rows: int
    seen_rows: int
    lengths: Any
    learned: int | None
    units: int
    step_size: int
    max_length: int | None = None
    formats: tuple[tuple[str, int], ...] = ()
    classes: tuple[tuple[str, int], ...] = ()

    @property
    def is_of_all(self) -> bool:
        """Whether the figures are of all rows."""
        return self.seen_rows == self.rows

    @property
    def tokens(self) -> int:
        """How many tokens the examples have together."""
        return int(self.lengths.sum())

    def figures(self) -> list["Figure"]:
        """Return what there is to know, for a person to read."""
        found = [Figure("rows", f"{self.seen_rows:,}", self._scope())]
        if self.formats:
            named = [f"{name} ({count:,})" for name, count in self.formats]
            only = self.formats[0][0] if len(self.formats) == 1 else ""
            found.append(Figure("format", only or ", ".join(named)))
        found.append(Figure("examples", f"{len(self.lengths):,}"))
        if self.units != len(self.lengths):
            found.append(Figure("packs", f"{self.units:,}"))
        if self.tokens:
            found += self._of_tokens()
        steps = self._of_an_epoch(math.ceil(self.units / self.step_size))
        kind = "example" if self.units == len(self.lengths) else "pack"
        size = f"of {self.step_size} {kind}{'' if self.step_size == 1 else 's'} each"
        found.append(Figure("steps in an epoch", self._spelled(steps), size))
        return found

    def _scope(self) -> str:
        """Return which rows the figures are of."""
        return "" if self.is_of_all else f"a sample of {self.rows:,}"

    def _of_tokens(self) -> list["Figure"]:
        shortest, median, high, longest = np.quantile(
            self.lengths, [0, 0.5, 0.95, 1], method="higher"
        )
        found = [Figure("tokens in an epoch", self._spelled(self._of_an_epoch(self.tokens)))]
        if self.learned is not None:
            found.append(Figure("learned", f"{self.learned / self.tokens:.1%}", "of the tokens"))
        spread = f"shortest {shortest:,}, median {median:,}, 95th percentile {high:,}"
        found.append(Figure("longest, in tokens", f"{longest:,}", spread))
        if self.max_length is not None:
            found.append(Figure("max_length", f"{self.max_length:,}"))
        return found

    def _of_an_epoch(self, count: int) -> float:
        """Return what a count of the rows that were seen is for all rows."""
        return count * self.rows / self.seen_rows

    def _spelled(self, count: float) -> str:
        """Return a count; an estimate has two digits that say something."""
        if self.is_of_all:
            return f"{round(count):,}"
        unit = 10 ** max(0, math.floor(math.log10(max(1, count))) - 1)
        return f"about {round(count / unit) * unit:,}"

    def bins(self) -> list[Bin]:
        """Return how many examples have which length, in stretches of a round width."""
        if not self.tokens:
            return []
        first, last = int(self.lengths.min()), int(self.lengths.max())
        width = _round_width((last - first + 1) / _MOST_BINS)
        found = []
        for start in range(first // width * width, last + 1, width):
            end = start + width - 1
            if self.max_length is not None and start <= self.max_length:
                end = min(end, max(last, self.max_length))
            count = int(((self.lengths >= start) & (self.lengths <= end)).sum())
            found.append(Bin(start, end, count))
        return found


def _round_width(least: float) -> int:
    """Return the first of 1, 2, 5, 10, 20, 50 and so on that is not less."""
    unit = 1
    while True:
        for factor in (1, 2, 5):
            if factor * unit >= least:
                return factor * unit
        unit *= 10


def most_common(counts: Sequence[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """Return the largest counts, and the rest under one name."""
    ordered = sorted(counts, key=lambda named: -named[1])
    if len(ordered) <= most:
        return ordered
    rest = ordered[most - 1 :]
    total = sum(count for _, count in rest)
    return [*ordered[: most - 1], (f"{len(rest):,} more", total)]
