"""Split held-out rows off the training rows: a share of each class, and groups kept together."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from peftkit.data.draws import generator
from peftkit.data.row_classes import class_numbers
from peftkit.data.row_places import describe_places
from peftkit.data.rows import Rows
from peftkit.errors import DataError

_NAMED_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Split:
    """The numbers of training rows and of held-out rows, arrays in the order of the rows.

    `decided` says what was decided, a line each.
    """

    training: Any
    held_out: Any
    decided: list[str]


def split_held_out(rows: Rows, share: float, seed: int, class_column: str | None = None) -> Split:
    """Split rows at random into training rows and held-out rows.

    Rows with the same ``group`` stay together. Without classes, the share is one of the groups, or
    of the rows if there are no groups. With classes, it is the same share of the rows of each class
    as nearly as groups allow: a class with two rows or more is on both sides, and one with a single
    row stays in the training.

    Memory grows by some bytes for each row, and not by the rows.

    Args:
        rows: All rows.
        share: The share to hold out; 0 to 1.
        seed: The seed of the draw.
        class_column: The column with a row's class; None where rows have none.

    Raises:
        DataError: one of the two sides would be empty, or lack what it needs.
    """
    draw = generator(seed, "data.evaluation")
    groups = _group_numbers(rows) if "group" in rows.columns else None
    if groups is not None and groups.max() + 1 == len(rows):
        groups = None  # each row is a group of its own
    if class_column is None:
        is_held_out = _draw_groups(len(rows), groups, share, draw)
        decided = []
    else:
        classes, names = class_numbers(rows, class_column)
        if groups is None:
            is_held_out = _draw_of_each_class(classes, share, draw)
        else:
            is_held_out = _draw_groups_by_class(groups, classes, share, draw)
        decided = _describe(rows, classes, names, is_held_out)
    count = int(is_held_out.sum())
    if count in (0, len(rows)):
        raise DataError(
            f"data.evaluation: {share} of {_count(rows, groups)} leaves nothing to train on or to "
            "hold out; raise it, or name a file of held-out rows"
        )
    line = f"data.evaluation: {count:,} of {len(rows):,} rows are held out"
    line += ", groups kept together" if groups is not None else ""
    line += ", a share of each class" if class_column is not None else ""
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out), [line, *decided])


def _count(rows: Rows, groups: Any) -> str:
    if groups is None:
        return f"{len(rows):,} rows"
    return f"{len(rows):,} rows in {groups.max() + 1:,} groups"


def _group_numbers(rows: Rows) -> Any:
    """Return a number for the group of each row, an array (rows,); a row without one is alone."""
    hashes = np.empty(len(rows), dtype=np.uint64)
    for number, row in enumerate(rows):
        group = row.get("group")
        name = f"row {number}" if group is None else f"group {group!r}"
        hashed = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8)
        hashes[number] = int.from_bytes(hashed.digest())
    found: Any = np.unique(hashes, return_inverse=True)[1].astype(np.int32)
    return found


def _draw_groups(count: int, groups: Any, share: float, draw: np.random.Generator) -> Any:
    """Return which rows are held out: a share of the groups, or of the rows without groups."""
    if groups is None:
        groups = np.arange(count, dtype=np.int32)
    number = int(groups.max()) + 1
    is_chosen = np.zeros(number, dtype=bool)
    is_chosen[draw.permutation(number)[: round(number * share)]] = True
    return is_chosen[groups]


def _wanted(sizes: Any, share: float) -> Any:
    """Return how many rows of each class to hold out, an array (classes,).

    That is ``sizes x share``, rounded so that the sum is right. Of two rows or more, one at least
    is on each side; a single row is not held out.
    """
    most = sizes - 1
    exact = sizes * share
    wanted = np.clip(np.floor(exact).astype(np.int64), np.minimum(1, most), most)
    missing = round(int(sizes.sum()) * share) - int(wanted.sum())
    for name in np.argsort(wanted - exact, kind="stable"):  # the largest remainders come first
        if missing > 0 and wanted[name] < most[name]:
            wanted[name] += 1
            missing -= 1
    return wanted


def _draw_of_each_class(classes: Any, share: float, draw: np.random.Generator) -> Any:
    """Return which rows are held out: a share of each class."""
    sizes = np.bincount(classes)
    by_class = np.argsort(classes, kind="stable")  # the rows of a class stand together
    is_held_out = np.zeros(len(classes), dtype=bool)
    start = 0
    for size, count in zip(sizes, _wanted(sizes, share), strict=True):
        members = by_class[start : start + size]
        is_held_out[members[draw.permutation(size)[:count]]] = True
        start += size
    return is_held_out


def _draw_groups_by_class(groups: Any, classes: Any, share: float, draw: Any) -> Any:
    """Return which rows are held out: whole groups, so that each class has its share or nearly.

    One group after the other, in random order, is held out if none of its classes then has more
    rows than are wanted. Then those are that bring the held-out rows nearer to what is wanted:

        distance = sum over classes c of (wanted_c - held out_c)^2 / rows_c

    Every class keeps a row to train on.
    """
    sizes = np.bincount(classes)
    missing = _wanted(sizes, share).astype(np.float64)
    left = sizes.copy()
    by_group = np.argsort(groups, kind="stable")  # the rows of a group stand together
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=-1, append=-1))
    is_held_out = np.zeros(len(classes), dtype=bool)
    least, nearest = np.inf, None  # what makes the distance larger by the least
    order = draw.permutation(len(starts) - 1)
    for may_exceed in (False, True):
        for number in order:
            members = by_group[starts[number] : starts[number + 1]]
            names, counts = np.unique(classes[members], return_counts=True)
            if is_held_out[members[0]] or (left[names] == counts).any():
                continue
            change = float((counts * (counts - 2 * missing[names]) / sizes[names]).sum())
            if change < 0 and (may_exceed or (counts <= missing[names]).all()):
                is_held_out[members] = True
                missing[names] -= counts
                left[names] -= counts
            elif 0 <= change < least:
                least, nearest = change, members
    if nearest is not None and not is_held_out.any():
        is_held_out[nearest] = True
    return is_held_out


def _describe(rows: Rows, classes: Any, names: list[str], is_held_out: Any) -> list[str]:
    """Return what to say of classes that are not held out."""
    sizes = np.bincount(classes)
    held_out = np.bincount(classes[is_held_out], minlength=len(sizes))
    lines = []
    single = np.flatnonzero(sizes == 1)
    if len(single):
        places = describe_places(rows, np.flatnonzero(np.isin(classes, single)))
        lines.append(
            "data.evaluation: a class with a single row stays in the training rows: "
            f"{_list_classes(names, single)} ({places})"
        )
    missing = np.flatnonzero((sizes > 1) & (held_out == 0))
    if len(missing):
        lines.append(
            f"data.evaluation: no row of {_list_classes(names, missing)} is held out, since groups "
            "stay together"
        )
    return lines


def _list_classes(names: list[str], numbers: Any) -> str:
    listed = ", ".join(repr(names[number]) for number in numbers[:_NAMED_CLASSES])
    more = len(numbers) - _NAMED_CLASSES
    return listed + (f" and {more} more" if more > 0 else "")
