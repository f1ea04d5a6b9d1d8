"""Split held-out rows off the training rows."""

import random
from collections.abc import Sequence

from peftkit.data.row_files import Row
from peftkit.errors import DataError


def split_held_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows at random into those to train on and those held out; rows of one ``group`` stay
    together.

    Raises:
        DataError: one of the two would be empty.
    """
    groups = sorted({row.get("group", number) for number, row in enumerate(rows)}, key=str)
    random.Random(seed).shuffle(groups)
    chosen = set(groups[: round(len(groups) * share)])
    if not chosen or len(chosen) == len(groups):
        raise DataError(
            f"data.evaluation: {share} of {len(groups)} rows leaves nothing to train on or to hold out"
        )
    is_held_out = [row.get("group", number) in chosen for number, row in enumerate(rows)]
    return (
        [row for row, held_out in zip(rows, is_held_out, strict=True) if not held_out],
        [row for row, held_out in zip(rows, is_held_out, strict=True) if held_out],
    )
