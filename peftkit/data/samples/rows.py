"""What the samples are made of before they are written."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
Splits = dict[str, list[Row]]


class Media(NamedTuple):
    """A picture or a sound that stands in a row: the name of its file, and its bytes."""

    name: str
    data: bytes


def split_rows(rows: Sequence[Row], train: int, validation: int, test: int | None = None) -> Splits:
    """Shuffle rows, the same way every time, and cut them into three splits; the test split is the
    rest, or `test` rows.
    """
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    end = None if test is None else train + validation + test
    return {
        "train": shuffled[:train],
        "validation": shuffled[train : train + validation],
        "test": shuffled[train + validation : end],
    }
