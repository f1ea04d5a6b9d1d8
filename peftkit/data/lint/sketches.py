"""A text as the set of its sequences of words, which shows how much of it another text shares."""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Shingles = NDArray[np.uint32]

_LENGTH = 3  # words in a shingle
_LARGEST = 1_000  # shingles that are kept of a long text: the smallest hashes, so equal ones stay
_TEMPLATE_SHARE = 0.01
_TEMPLATE_ROWS = 10

# Scripts without spaces, where a letter counts as a word: kana, Chinese characters, Thai and Lao,
# Burmese, Khmer. Signs other than punctuation count as words, too: 3 + 4 is not 3 - 4.
_SPACELESS = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_PUNCTUATION = ".,;:!?\"'()\\[\\]\u2010-\u2027\u3001-\u3003\u300c-\u300f\uff01-\uff0f\uff1a-\uff1f"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+|[^\w\s{_PUNCTUATION}]")


@dataclasses.dataclass(frozen=True, slots=True)
class Sketch:
    """What is kept of a text to compare it with others."""

    plain: bytes
    """A hash of its words, without case, punctuation and white space; empty if it has none."""
    shingles: Shingles
    """Hashes of its sequences of 3 words, sorted, each once; at most 1,000 of them."""


def split_words(text: str) -> list[str]:
    """Return the words and signs of a text, in lower case and without punctuation."""
    return _WORD.findall(text.casefold())


def sketch(text: str) -> Sketch:
    """Return the sketch of a text."""
    words = [word.encode("utf-8", "surrogatepass") for word in split_words(text)]
    if not words:
        return Sketch(b"", np.empty(0, np.uint32))
    return Sketch(blake2b(b" ".join(words), digest_size=8).digest(), _shingles(words))


def _shingles(words: Sequence[bytes]) -> Shingles:
    count = len(words) - _LENGTH + 1
    if count < 1:
        return np.empty(0, np.uint32)
    hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    mixed = np.zeros(count, np.uint64)
    for place in range(_LENGTH):  # wraps around at 2^64, as is meant
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))[:_LARGEST]


def find_template(texts: Sequence[Shingles]) -> Shingles:
    """Return the shingles that belong to a template: those in more than 1% of all texts.

    A system message or an instruction that many rows share makes no two of them alike.
    """
    if not texts:
        return np.empty(0, np.uint32)
    shingles, counts = np.unique(np.concatenate(texts), return_counts=True)
    return shingles[counts > max(_TEMPLATE_ROWS, _TEMPLATE_SHARE * len(texts))]


def resemblance(one: Shingles, other: Shingles) -> float:
    """Return the share of the shingles of two texts that both have, |A and B| / |A or B|."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(1, len(one) + len(other) - both)
