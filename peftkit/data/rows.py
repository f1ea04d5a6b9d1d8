"""Rows that are read when they are asked for, so that they need not fit into memory."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.errors import DataError

Row = dict[str, Any]

_ROWS_WITH_COLUMNS = 1000  # the first ones are asked which columns there are


class Rows(Sequence[Row]):
    """Rows of a file, of several, or of a list.

    A row is read, and changed by what `map` was given, each time it is asked for. It need not have
    every column: what is missing is the same as None.

    Args:
        read: Returns the row of a number, from 0 on.
        count: How many rows there are.
        where: Says where the row of a number stands, such as "prices.csv, row 3".
        digest: Says which rows these are: two objects with one digest have the same rows in the
            same order, but for what `map` changes by the settings of a run.

    Attributes:
        directory: The one that files which rows name are relative to; None is the current one.
    """

    directory: Path | None = None

    def __init__(
        self,
        read: Callable[[int], Row],
        count: int,
        where: Callable[[int], str],
        digest: Callable[[], str],
    ) -> None:
        self._read = read
        self._count = count
        self.where = where
        self._digest = digest

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], name: str = "the rows") -> "Rows":
        """Return rows that are in memory already; `name` is what messages call them."""
        if isinstance(rows, Rows):
            return rows

        def digest() -> str:
            hashed = hashlib.sha256()
            for row in rows:
                hashed.update(json.dumps(row, default=repr).encode("utf-8", "surrogatepass"))
            return hashed.hexdigest()

        def where(number: int) -> str:
            return f"{name}, row {number + 1}"

        return cls(lambda number: dict(rows[number]), len(rows), where, digest)

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """Return the rows of several parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum(list(map(len, parts))).tolist()

        def find(number: int) -> tuple[Rows, int]:
            part = bisect_right(ends, number)
            return parts[part], number - (ends[part - 1] if part else 0)

        def read(number: int) -> Row:
            rows, place = find(number)
            row: Row = rows[place]
            return row

        def where(number: int) -> str:
            rows, place = find(number)
            return rows.where(place)

        def digest() -> str:
            return _digest_of(*(part.digest for part in parts))

        return cls(read, ends[-1] if ends else 0, where, digest)

    @property
    def digest(self) -> str:
        """A digest of the rows' content."""
        return self._digest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the first rows, in the order in which they first occur."""
        found: dict[str, None] = {}
        for number in range(min(len(self), _ROWS_WITH_COLUMNS)):
            found |= dict.fromkeys(self[number])
        return tuple(found)

    def map(self, change: Callable[[Row], Row], *, depends_on: str = "") -> "Rows":
        """Return the rows as `change` makes them, one at a time.

        A `DataError` that it raises gets the row's place in front.

        Args:
            change: Makes a row of a row.
            depends_on: What it goes by beside the row and the settings of a run; the digest of the
                rows depends on it.
        """

        def read(number: int) -> Row:
            row = self[number]
            try:
                return change(row)
            except DataError as problem:
                raise type(problem)(f"{self.where(number)}: {problem}") from None

        def digest() -> str:
            return _digest_of(self.digest, depends_on) if depends_on else self.digest

        return Rows(read, len(self), self.where, digest)

    def select(self, numbers: Sequence[int] | np.ndarray) -> "Rows":
        """Return the rows of these numbers, in this order; a row may come more than once."""
        is_large = len(self) > np.iinfo(np.int32).max
        chosen = np.asarray(numbers, dtype=np.int64 if is_large else np.int32)

        def digest() -> str:
            return _digest_of(self.digest, hashlib.sha256(chosen.tobytes()).hexdigest())

        return Rows(
            lambda number: self[int(chosen[number])],
            len(chosen),
            lambda number: self.where(int(chosen[number])),
            digest,
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return self.select(range(self._count)[number])
        if not -self._count <= number < self._count:
            raise IndexError(number)
        return self._read(number % self._count)

    def __iter__(self) -> Iterator[Row]:
        for number in range(self._count):
            yield self._read(number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def _digest_of(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
