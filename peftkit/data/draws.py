"""Random draws of rows. Each has a purpose of its own, so that one does not change another."""

from typing import Any

import numpy as np


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the generator of one purpose, such as "data.shares", in the run with this seed."""
    return np.random.default_rng([seed, *purpose.encode()])


def draw_evenly(numbers: Any, count: int, source: np.random.Generator) -> Any:
    """Return `count` of these numbers, each as often as the others or once more, at random.

    Args:
        numbers: An array, (rows,), with one number at least.
        count: How many to return. Up to the number of rows, none is repeated.
        source: Decides which ones come once more.

    Returns:
        An array (count,): all numbers in their order, again and again, then those drawn.
    """
    times, rest = divmod(count, len(numbers))
    drawn = np.sort(source.permutation(numbers)[:rest])
    return np.concatenate([np.tile(numbers, times), drawn])


def spell_times(count: int, rows: int) -> str:
    """Return how often each of some rows comes among `count`, in words."""
    times, rest = divmod(count, rows)
    if not times:
        return f"{count:,} of {rows:,} rows"
    if not rest:
        return f"{count:,} rows" + (f" (each {times} times)" if times > 1 else "")
    return f"{count:,} rows (each {times} or {times + 1} times)"
