"""What training asks of examples, be they in a list or in files.

A sequence that knows an answer has it as an attribute; any other is asked example by example.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def lengths_of(examples: Sequence[Any]) -> Any:
    """Return the length of each example in tokens, an array (examples,) of whole numbers."""
    lengths = getattr(examples, "lengths", None)
    return np.array(list(map(len, examples)), np.int32) if lengths is None else lengths


def data_digest(examples: Sequence[Any]) -> str:
    """Return a digest of all that is learned from examples; the ``repr`` of one must show it."""
    known: str | None = getattr(examples, "digest", None)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


def largest_token(examples: Sequence[Any]) -> int:
    """Return the largest of the ``input_ids`` of all examples; -1 where they have none."""
    known: int | None = getattr(examples, "largest_token", None)
    if known is not None:
        return known
    largest = -1
    for example in examples:
        features = getattr(example, "features", {})
        ids = getattr(example, "input_ids", None) or features.get("input_ids") or ()
        largest = max(largest, *ids) if ids else largest
    return largest
