"""The rows that a run of few steps needs: no others are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftkit.data.rows import Rows


@dataclass(frozen=True)
class Needed:
    """Examples for as many steps as a run takes.

    Attributes:
        examples: Their number is enough, unless all rows together give fewer.
        rows: What they were made of.
        share: The share of these rows among all.
    """

    examples: Sequence[Any]
    rows: Rows
    share: float = 1.0


def encode_needed(
    rows: Rows, count: int | None, seed: int, encode: Callable[[Rows], Sequence[Any]]
) -> Needed:
    """Return examples of rows that are drawn at random, as many as are needed.

    Rows may give no example, or several, or share one. So twice as many rows are drawn as long as
    there are too few examples. The draw depends on the seed alone, which makes a resumed run exact.

    Args:
        rows: All training rows.
        count: How many examples are needed; None takes all rows.
        seed: The seed of the draw.
        encode: Makes examples of rows.
    """
    if count is None or count >= len(rows):
        return Needed(encode(rows), rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    count_of_rows = count
    while True:
        drawn = rows.select(order[:count_of_rows])
        examples = encode(drawn)
        if len(examples) >= count or len(drawn) == len(rows):
            return Needed(examples, drawn, len(drawn) / len(rows))
        count_of_rows *= 2
