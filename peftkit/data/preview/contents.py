"""The contents of a preview, however it is written down."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from peftkit.data.preview.shown import Shown
from peftkit.data.preview.statistics import Statistics
from peftkit.data.rendering_counts import UNUSED, problems


@dataclasses.dataclass(frozen=True)
class Preview:
    """What a model reads and learns of some rows.

    Attributes:
        title: The recipe, the model and the data.
        statistics: Figures of the rows.
        warnings: What is likely not meant, a sentence each.
        remarks: What the task says of the rows, in one line.
        examples: Some of the examples.
    """

    title: str
    statistics: Statistics
    warnings: tuple[str, ...]
    remarks: str
    examples: tuple[Shown, ...]


def list_warnings(counts: Counter[str], statistics: Statistics) -> list[str]:
    """Return what of the rows is likely not meant, a sentence each.

    Args:
        counts: What happened to the rows, as a task counted it.
        statistics: Figures of the same rows.
    """
    rows = f"of {statistics.seen_rows:,} rows"
    found = []
    if counts["dropped"]:
        found.append(
            f"{counts['dropped']:,} {rows} left out, since nothing of them is learned within "
            "data.max_length: raise it, or see below what is learned."
        )
    if counts["truncated"]:
        found.append(
            f"{counts['truncated']:,} {rows} cut at data.max_length, {counts['answers_cut']:,} of "
            "them within an answer: raise it, or leave these rows out."
        )
    others = Counter(counts)
    for name in counts:
        if name in ("dropped", "truncated") or name.startswith(UNUSED):
            del others[name]
    for problem in problems(others):
        found.append(f"{problem}.")
    for name, texts in (("cut", "texts"), ("sources cut", "sources"), ("targets cut", "targets")):
        if counts[name]:
            found.append(
                f"{counts[name]:,} {rows}: {texts} cut at data.max_length; raise it, if the end "
                "matters."
            )
    missing = counts["words without a token"]
    if missing:
        found.append(
            f"{missing:,} of {counts['words']:,} words are behind data.max_length or without a "
            "token, so their tags are not learned."
        )
    return found


def check_ends(examples: Sequence[Any], tokenizer: Any) -> list[str]:
    """Return a warning if no end token is learned: a model would then not know where to stop."""
    ends: list[int] = getattr(tokenizer, "all_special_ids", [])
    labels = [getattr(example, "labels", None) for example in examples]
    if not ends or not labels or not all(isinstance(each, list) for each in labels):
        return []
    if any(not set(ends).isdisjoint(each or ()) for each in labels):
        return []
    return ["No end token is learned, so the model would not learn where an answer ends."]
