"""Show what a model will learn from: decoded examples with the supervised tokens marked."""

import statistics
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from peftkit.data.supervised_tokens import Example
from peftkit.labels import IGNORED

_BOLD_GREEN, _DIM, _PLAIN = "\033[1;32m", "\033[2m", "\033[0m"


def preview(
    examples: Sequence[Example],
    remarks: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int = 3,
    color: bool = False,
) -> str:
    """Return the first `count` examples as text, and statistics of all examples.

    Supervised tokens are between ⟦ and ⟧, or green if `color` is set.
    """
    lines = []
    for number, example in enumerate(examples[:count], 1):
        lines.append(
            f"--- example {number}: {len(example)} tokens, {example.supervised} supervised"
        )
        lines.append(_mark(example, tokenizer, color))
    return "\n".join([*lines, "---", remarks, *_describe(examples)])


def _mark(example: Example, tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """Return an example's text with the supervised stretches marked."""
    left, right = (_PLAIN + _BOLD_GREEN, _PLAIN + _DIM) if color else ("⟦", "⟧")
    text = ""
    for supervised, ids in _stretches(example):
        decoded = tokenizer.decode(ids)
        text += f"{left}{decoded}{right}" if supervised else decoded
    return f"{_DIM}{text}{_PLAIN}" if color else text


def _stretches(example: Example) -> Iterator[tuple[bool, list[int]]]:
    """Yield runs of tokens that are all supervised, or all not, and which of the two they are."""
    stretch: list[int] = []
    supervised = False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if (label != IGNORED) != supervised:
            if stretch:
                yield supervised, stretch
            stretch = []
            supervised = label != IGNORED
        stretch.append(token)
    if stretch:
        yield supervised, stretch


def _describe(examples: Sequence[Example]) -> list[str]:
    lengths = sorted(map(len, examples))
    total = sum(lengths)
    supervised = sum(example.supervised for example in examples)
    percentile = lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))]
    return [
        f"tokens: {total}, of which supervised: {supervised} ({supervised / total:.0%})",
        f"length in tokens: shortest {lengths[0]}, median {statistics.median(lengths):g}, "
        f"95th percentile {percentile}, longest {lengths[-1]}",
    ]
