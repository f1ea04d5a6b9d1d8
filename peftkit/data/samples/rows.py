"""What samples are made of before they are written."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
Splits = dict[str, list[Row]]


class Media(NamedTuple):
    """A picture or a sound in a row: the name of its file, and the file's bytes."""

    name: str
    data: bytes


def split_rows(rows: Sequence[Row], train: int, validation: int, test: int | None = None) -> Splits:
    """Shuffle rows, in the same way every time, and cut them into three splits.

    Args:
        rows: All rows.
        train: The size of the training split.
        validation: The size of the validation split.
        test: The size of the test split; None takes all that is left.
    """
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    end = None if test is None else train + validation + test
    return {
        "train": shuffled[:train],
        "validation": shuffled[train : train + validation],
        "test": shuffled[train + validation : end],
    }
