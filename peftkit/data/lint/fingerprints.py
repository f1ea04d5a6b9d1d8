"""A few bytes of each row, by which equal rows are found in data of any size."""

import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftkit.data.lint.items import LintItem


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Hashes and labels of rows, in their order: 20 bytes for each row."""

    contents: NDArray[np.uint64]
    """Hashes of what is read and of the answer, without labels, (rows,)."""
    rows: NDArray[np.uint64]
    """Hashes of the same with the labels, (rows,)."""
    label_sets: NDArray[np.int32]
    """The number of each row's labels; equal labels have equal numbers, (rows,)."""
    counts: Counter[str]
    """How many rows have each label."""
    first: dict[str, int]
    """The number of the first row with each label."""

    @property
    def are_labelled(self) -> bool:
        """Whether any row has a label."""
        return bool(self.counts)


def take_fingerprints(items: Iterable[LintItem]) -> Fingerprints:
    """Return the fingerprints of rows, which are read once."""
    contents, rows, label_sets = array("Q"), array("Q"), array("i")
    numbers: dict[tuple[str, ...], int] = {}
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    for place, item in enumerate(items):
        is_empty = not item.content and not item.file  # such a row is no copy of another one
        content = (
            _hash(item.where) if is_empty else _hash(item.file, item.text, item.other, item.answer)
        )
        contents.append(content)
        rows.append(_hash(content, *item.labels) if item.labels else content)
        label_sets.append(numbers.setdefault(item.labels, len(numbers)))
        for label in item.labels:
            counts[label] += 1
            first.setdefault(label, place)
    return Fingerprints(
        np.frombuffer(contents, np.uint64) if contents else np.empty(0, np.uint64),
        np.frombuffer(rows, np.uint64) if rows else np.empty(0, np.uint64),
        np.frombuffer(label_sets, np.int32) if label_sets else np.empty(0, np.int32),
        counts,
        first,
    )


def _hash(*parts: Any) -> int:
    """Return a 64-bit hash that is the same in every process."""
    state = blake2b(digest_size=8)
    for part in parts:
        text = "\0" if part is None else f"{part}\1"
        state.update(text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(state.digest(), "little")
