"""Replay: old rows mixed into the new ones, so that a model forgets less of what it knew."""

from peftkit.data.draws import generator
from peftkit.data.rows import Rows


def add_replay(rows: Rows, old: Rows, share: float, seed: int) -> Rows:
    """Return the new rows, and after them old rows drawn at random.

    Args:
        rows: The new rows.
        old: The rows to draw from.
        share: The share of old rows among all returned rows; 1 returns old rows only. If there are
            too few old rows, all of them are taken.
        seed: The seed of the draw.
    """
    drawn = generator(seed, "data.replay").permutation(len(old))
    if share == 1:
        return old.select(drawn)
    # old / (new + old) = share, so old = new * share / (1 - share)
    count = round(len(rows) * share / (1 - share))
    return Rows.joined([rows, old.select(drawn[:count])])
