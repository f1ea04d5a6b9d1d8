"""Mix old rows into new ones, so that a model forgets less of what it learned before."""

import random
from collections.abc import Sequence

from peftkit.data.row_files import Row


def add_replay(rows: Sequence[Row], old: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Return new rows and as many old ones, drawn at random, as make up `share` of all (or all old
    ones, if fewer).
    """
    count = len(old) if share == 1 else min(len(old), round(len(rows) * share / (1 - share)))
    return [*(rows if share < 1 else []), *random.Random(seed).sample(list(old), count)]
