"""Split held-out rows off the training rows."""

import random
from collections.abc import Sequence

from peftkit.data.row_files import Row
from peftkit.errors import DataError


def split_held_out(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
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
    group_of = [row.get("group", number) for number, row in enumerate(rows)]
    groups = sorted(set(group_of), key=str)
    random.Random(seed).shuffle(groups)
    chosen = set(groups[: round(len(groups) * share)])
    if not chosen or len(chosen) == len(groups):
        raise DataError(
            f"data.evaluation: {share} of {len(groups)} rows leaves nothing to train on or to "
            "hold out"
        )
    training: list[Row] = []
    held_out: list[Row] = []
    for row, group in zip(rows, group_of, strict=True):
        if group in chosen:
            held_out.append(row)
        else:
            training.append(row)
    return training, held_out
