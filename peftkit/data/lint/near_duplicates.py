"""Rows that say almost the same, found by MinHash and locality-sensitive hashing (Broder 1997).

Two texts are alike if they differ in nothing but case, punctuation and white space, or if they
share at least 80% of their sequences of three words (the Jaccard index): a word in 27 may differ.
MinHash signatures in 16 bands of 8 hashes give the candidates, and each is then compared without
estimates: in each of its parts (the question, the answer), and without the template, which is what
more than 1% of the rows share.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from peftkit.data.lint.items import SHOWN, Finding, LintItem, either, likened
from peftkit.data.lint.sketches import Shingles, find_template, resemblance, sketch

_ALIKE = 0.8
_FEWEST = 10  # shingles without the template; fewer say nothing
_BANDS, _HASHES = 16, 8  # a pair shares a band with probability 1 - (1 - 0.8^8)^16 = 0.95 at 0.8


def find_near_duplicates(
    items: Sequence[LintItem], held_out: Sequence[LintItem] = ()
) -> list[Finding]:
    """Find rows that are alike but not equal.

    Args:
        items: Training rows; each is compared with the earlier ones.
        held_out: Held-out rows; each is compared with the training rows.
    """
    everything = [*items, *held_out]
    copies: list[str] = []
    overlap: list[str] = []
    for number, other in sorted(_find_alike(everything, len(items)).items()):
        if everything[number].content != everything[other].content:
            found = copies if number < len(items) else overlap
            found.append(likened(everything[number], everything[other]))
    return [*_describe_copies(copies), *_describe_overlap(overlap)]


def _describe_copies(pairs: Sequence[str]) -> list[Finding]:
    if not pairs:
        return []
    row = "row is almost the same as an earlier row"
    rows = "rows are almost the same as earlier rows"
    return [
        Finding(
            "near-duplicates",
            len(pairs),
            either(len(pairs), row, rows),
            "keep one of each, unless both are meant to count",
            tuple(pairs[:SHOWN]),
        )
    ]


def _describe_overlap(pairs: Sequence[str]) -> list[Finding]:
    if not pairs:
        return []
    row = "held-out row is almost the same as a training row"
    rows = "held-out rows are almost the same as training rows"
    return [
        Finding(
            "near-overlap",
            len(pairs),
            either(len(pairs), row, rows),
            "take such rows out of one side, or the figures are too good",
            tuple(pairs[:SHOWN]),
        )
    ]


def _find_alike(items: Sequence[LintItem], learned: int) -> dict[int, int]:
    """Return, for the number of a row, that of an earlier row that is alike.

    Args:
        items: The training rows, and after them the held-out ones.
        learned: How many are training rows; an earlier row is always one of them.
    """
    alike: dict[int, int] = {}
    first: dict[bytes, int] = {}
    numbers, texts = [], []  # of the rows that are compared by their shingles
    for number, item in enumerate(items):
        text = sketch(item.content)
        if not text.plain:
            continue
        if text.plain in first:
            alike[number] = first[text.plain]
            continue
        if number < learned:
            first[text.plain] = number
        numbers.append(number)
        texts.append(text.shingles)
    for later, earlier in _find_similar(texts):
        number, other = numbers[later], numbers[earlier]
        if number in alike or other >= learned:
            continue
        if _have_like_parts(items[number], items[other]):
            alike[number] = other
    return alike


def _have_like_parts(item: LintItem, other: LintItem) -> bool:
    """Whether the question is like the other question, and the answer like the other answer."""
    for part, other_part in zip(map(sketch, item.parts), map(sketch, other.parts), strict=True):
        is_like = resemblance(part.shingles, other_part.shingles) >= _ALIKE
        if part.plain != other_part.plain and not is_like:
            return False
    return True


def _find_similar(texts: Sequence[Shingles]) -> Iterator[tuple[int, int]]:
    """Yield pairs of texts that are alike without the template, by number, the later one first."""
    template = find_template(texts)
    places, own = [], []
    for place, shingles in enumerate(texts):
        kept = _without(shingles, template)
        if len(kept) >= _FEWEST:
            places.append(place)
            own.append(kept)
    for later, earlier in sorted(_candidates(_signatures(own))):
        if resemblance(own[later], own[earlier]) >= _ALIKE:
            yield places[later], places[earlier]


def _without(shingles: Shingles, template: Shingles) -> Shingles:
    if not len(template):
        return shingles
    nearest = np.minimum(np.searchsorted(template, shingles), len(template) - 1)
    kept: Shingles = shingles[template[nearest] != shingles]
    return kept


def _signatures(texts: Sequence[Shingles]) -> NDArray[np.uint32]:
    """Return the smallest of the values of each hash function over a text's shingles.

    Function i takes the shingle x to a_i x + b_i modulo 2^32; shingles are random already.

    Returns:
        (texts, hash functions).
    """
    count = _BANDS * _HASHES
    random = np.random.default_rng(0)
    factors = random.integers(2**31, size=count, dtype=np.uint32) * 2 + np.uint32(1)
    offsets = random.integers(2**32, size=count, dtype=np.uint32)
    signatures = np.empty((len(texts), count), np.uint32)
    for number, shingles in enumerate(texts):
        signatures[number] = (shingles[:, None] * factors + offsets).min(0)  # of [shingles, count]
    return signatures


def _candidates(signatures: NDArray[np.uint32]) -> set[tuple[int, int]]:
    """Return pairs of numbers of texts with an equal band, the later one first.

    Of several with an equal band, each is paired with the first one and with the one before it.
    """
    found: set[tuple[int, int]] = set()
    factors = np.random.default_rng(1).integers(2**63, size=_HASHES, dtype=np.uint64) * 2 + 1
    for start in range(0, _BANDS * _HASHES, _HASHES):
        bands = signatures[:, start : start + _HASHES].astype(np.uint64)
        keys = (bands * factors).sum(1, dtype=np.uint64)  # one number for a band, (texts,)
        order = np.argsort(keys, kind="stable")
        is_equal = keys[order[1:]] == keys[order[:-1]]
        first = -1
        for place in np.flatnonzero(is_equal):
            earlier, later = int(order[place]), int(order[place + 1])
            if first < 0 or keys[first] != keys[earlier]:
                first = earlier
            found.add((later, first))
            found.add((later, earlier))
    return found
