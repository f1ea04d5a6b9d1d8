"""Rows with a progress bar for who goes through all of them."""

import sys
from collections.abc import Iterator

from tqdm import tqdm

from peftkit.data.rows import Row, Rows


class WatchedRows(Rows):
    """Rows whose iteration shows a bar with rate and time left, if it takes more than a second.

    Args:
        rows: The rows.
        name: What is done with them, for the bar.
        is_shown: Whether to show it: of several processes, one does.
    """

    def __init__(self, rows: Rows, name: str, *, is_shown: bool = True) -> None:
        super().__init__(rows.__getitem__, len(rows), rows.where, lambda: rows.digest)
        self._name = name
        self._is_shown = is_shown

    def __iter__(self) -> Iterator[Row]:
        yield from tqdm(
            super().__iter__(),
            desc=self._name,
            total=len(self),
            unit=" rows",
            delay=1,
            file=sys.stderr,
            disable=not self._is_shown,
        )
