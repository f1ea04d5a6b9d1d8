"""Rows that are in the data more than once: among the training rows, and on both sides."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peftkit.data.lint.fingerprints import Fingerprints
from peftkit.data.lint.items import SHOWN, Finding, LintItem, either, is_other_row, likened


def find_duplicates(items: Sequence[LintItem], prints: Fingerprints) -> list[Finding]:
    """Find rows that are equal to an earlier one, in what is read and what is learned.

    A row that is drawn several times, to oversample it, is no copy.
    """
    order = np.argsort(prints.rows, kind="stable")  # equal rows side by side, the first one first
    copied = np.flatnonzero(prints.rows[order[1:]] == prints.rows[order[:-1]])
    is_other = [is_other_row(items, order[place], order[place + 1]) for place in copied]
    copied = copied[np.array(is_other, bool)]
    copies, originals = order[copied + 1], order[copied]
    count = len(copies)
    if not count:
        return []
    return [
        Finding(
            "exact duplicates",
            count,
            either(count, "row is a copy of an earlier row", "rows are copies of earlier rows"),
            "leave copies out, or they count more than once",
            _pairs(items, copies, items, originals),
        )
    ]


def find_label_conflicts(items: Sequence[LintItem], prints: Fingerprints) -> list[Finding]:
    """Find texts that are there with different labels."""
    if not prints.are_labelled:
        return []
    order = np.lexsort((np.arange(len(prints.contents)), prints.label_sets, prints.contents))
    contents, labels = prints.contents[order], prints.label_sets[order]
    differs = (contents[1:] == contents[:-1]) & (labels[1:] != labels[:-1])
    others, ones = order[1:][differs], order[:-1][differs]
    count = len(np.unique(prints.contents[others]))
    if not count:
        return []
    return [
        Finding(
            "label conflicts",
            count,
            either(count, "text has more than one label", "texts have more than one label"),
            "decide for one of them, as only one can be learned",
            _pairs(items, others, items, ones),
        )
    ]


def find_overlap(
    items: Sequence[LintItem],
    prints: Fingerprints,
    held_out: Sequence[LintItem],
    held_out_prints: Fingerprints,
) -> list[Finding]:
    """Find held-out rows whose text and answer are in a training row, too."""
    ours, theirs = prints.contents, held_out_prints.contents
    both = np.flatnonzero(np.isin(theirs, ours))
    count = len(both)
    if not count:
        return []
    first = both[:SHOWN]
    found = []
    for content in theirs[first]:
        found.append(np.flatnonzero(ours == content)[0])
    return [
        Finding(
            "overlap",
            count,
            either(count, "held-out row is", "held-out rows are") + " among the training rows",
            "take such rows out of one side, or the figures are too good",
            _pairs(held_out, first, items, np.array(found)),
        )
    ]


def _pairs(
    items: Sequence[LintItem],
    numbers: NDArray[np.int64],
    others: Sequence[LintItem],
    other_numbers: NDArray[np.int64],
) -> tuple[str, ...]:
    """Return the places of the first pairs, in the order of the items."""
    found = []
    for place in np.argsort(numbers, kind="stable")[:SHOWN]:
        found.append(likened(items[int(numbers[place])], others[int(other_numbers[place])]))
    return tuple(found)
