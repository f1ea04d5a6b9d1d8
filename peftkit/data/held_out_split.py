"""Split held-out rows off the training rows."""

import random
from collections.abc import Sequence
from typing import Any

from peftkit.data.rows import Rows
from peftkit.errors import DataError


def split_held_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows at random into training rows and held-out rows.

    Rows with the same ``group`` stay together.

    Args:
        rows: All rows.
        share: The share of the groups, or of the rows without a group, to hold out; 0 to 1.
        seed: The seed of the draw.

    Returns:
        The training rows and the held-out rows, both in the order of `rows`.

    Raises:
        DataError: one of the two would be empty.
    """
    group_of: Sequence[Any] = range(len(rows))
    if "group" in rows.columns:
        group_of = [row.get("group", number) for number, row in enumerate(rows)]
    groups = sorted(set(group_of), key=str)
    random.Random(seed).shuffle(groups)
    chosen = set(groups[: round(len(groups) * share)])
    if not chosen or len(chosen) == len(groups):
        raise DataError(
            f"data.evaluation: {share} of {len(groups)} rows leaves nothing to train on or to "
            "hold out"
        )
    training: list[int] = []
    held_out: list[int] = []
    for number, group in enumerate(group_of):
        if group in chosen:
            held_out.append(number)
        else:
            training.append(number)
    return rows.select(training), rows.select(held_out)
