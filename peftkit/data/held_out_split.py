"""Split held-out rows off the training rows: a share of each class, and groups kept together."""

import dataclasses
import hashlib
import math
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
    return Split(_numbers(~is_held_out), _numbers(is_held_out), [line, *decided])


def _numbers(is_chosen: Any) -> Any:
    """Return the numbers of the chosen rows, an array; 32 bits are enough and take half of 64."""
    return np.flatnonzero(is_chosen).astype(np.int32)


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
    numbers = np.arange(number, dtype=np.int32)
    is_chosen[draw.permutation(numbers)[: round(number * share)]] = True
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
    by_class = np.argsort(classes, kind="stable").astype(np.int32)  # those of a class together
    is_held_out = np.zeros(len(classes), dtype=bool)
    start = 0
    for size, count in zip(sizes, _wanted(sizes, share), strict=True):
        members = by_class[start : start + size]
        is_held_out[draw.permutation(members)[:count]] = True
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
    # Plain numbers: a group has few classes, for which numpy is slow.
    rows_of, missing, left = sizes.tolist(), _wanted(sizes, share).tolist(), sizes.tolist()
    names, counts, starts = _classes_of_groups(groups, classes)
    order = draw.permutation(len(starts) - 1)
    is_chosen = np.zeros(len(order), dtype=bool)
    least, nearest = math.inf, None  # what makes the distance larger by the least
    for may_exceed in (False, True):
        for group in order:
            if is_chosen[group]:
                continue
            place = slice(starts[group], starts[group + 1])
            found = list(zip(names[place].tolist(), counts[place].tolist(), strict=True))
            if any(left[name] == count for name, count in found):
                continue
            change = sum(
                count * (count - 2 * missing[name]) / rows_of[name] for name, count in found
            )
            fits = may_exceed or all(count <= missing[name] for name, count in found)
            if change < 0 and fits:
                is_chosen[group] = True
                for name, count in found:
                    missing[name] -= count
                    left[name] -= count
            elif 0 <= change < least:
                least, nearest = change, group
    if nearest is not None and not is_chosen.any():
        is_chosen[nearest] = True
    return is_chosen[groups]


def _classes_of_groups(groups: Any, classes: Any) -> tuple[Any, Any, Any]:
    """Return the classes in each group, with the number of their rows.

    Returns:
        Classes and numbers of rows, arrays (pairs,) in the order of the groups; and where each
        group begins in them, an array (groups + 1,).
    """
    kinds = int(classes.max()) + 1
    pairs, counts = np.unique(groups.astype(np.int64) * kinds + classes, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(int(groups.max()) + 2) * kinds)
    return pairs % kinds, counts, starts


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
