"""How often each row is learned: the shares of files, and the rows of rare classes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftkit.data.draws import draw_evenly, generator, spell_times
from peftkit.errors import DataError


def draw_shares(
    files: Any, names: Sequence[str], shares: Sequence[float], seed: int
) -> tuple[Any, str]:
    """Return which rows make an epoch in which each file has its share.

    It has as many rows as the files together. A file with too many rows for its share gives some of
    them, drawn once; one with too few gives all of them, as often as it takes.

    Args:
        files: The number of the file of each row, an array (rows,).
        names: What the files are called.
        shares: The share of each, greater than 0; their sum is 1.
        seed: The seed of the draw.

    Returns:
        The numbers of the rows, an array; and a line that says how often each file's come.

    Raises:
        DataError: a file has no row, or its share is less than one row.
    """
    draw = generator(seed, "data.shares")
    drawn, said = [], []
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        numbers = np.flatnonzero(files == number).astype(np.int32)
        count = round(len(files) * share)
        if not len(numbers):
            raise DataError(f"data.shares: {name} has no rows left to train on")
        if not count:
            raise DataError(
                f"data.shares: {share} of {len(files):,} rows leaves none of {name}: raise its "
                "share, or leave the file out"
            )
        drawn.append(draw_evenly(numbers, count, draw))
        said.append(f"{name} {spell_times(count, len(numbers))}")
    return np.concatenate(drawn), f"data.shares: {', '.join(said)}"


def oversample(classes: Any, names: Sequence[str], share: float, seed: int) -> tuple[Any, str]:
    """Return which rows are learned so that no class is rare; all rows, and some of them again.

    Args:
        classes: The number of each row's class, an array (rows,).
        names: What the classes are called.
        share: Of the rows of the largest class, that each class has at least; 0 to 1.
        seed: The seed of the draw.

    Returns:
        The numbers of the rows, an array that begins with each row once; and a line that says how
        many rows of each class are learned.
    """
    draw = generator(seed, "data.oversample")
    sizes = np.bincount(classes, minlength=len(names))
    least = math.ceil(sizes.max() * share)
    drawn, said = [np.arange(len(classes), dtype=np.int32)], []
    for number in np.argsort(-sizes, kind="stable"):
        size = int(sizes[number])
        if size < least:
            numbers = np.flatnonzero(classes == number).astype(np.int32)
            drawn.append(draw_evenly(numbers, least, draw)[size:])
            said.append(f"{names[number]!r} {size:,} -> {spell_times(least, size)}")
    if not said:
        line = f"every class has at least {share} of the rows of the largest: none is repeated"
        return drawn[0], f"data.oversample: {line}"
    return np.concatenate(drawn), f"data.oversample: {', '.join(said)}"
