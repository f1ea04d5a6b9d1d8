"""Show what a model will learn from: decoded examples with the supervised tokens marked, and length
statistics.
"""

import statistics
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from peftkit.data.supervised_tokens import Example, Rendered
from peftkit.labels import IGNORED

_BOLD_GREEN, _DIM, _PLAIN = "\033[1;32m", "\033[2m", "\033[0m"


def preview(
    rendered: Rendered, tokenizer: PreTrainedTokenizerBase, *, count: int = 3, color: bool = False
) -> str:
    """Return a text of `count` examples and the statistics of all.

    Supervised stretches stand between ⟦ and ⟧, or in green with `color`.
    """
    blocks = []
    for number, example in enumerate(rendered.examples[:count], 1):
        head = f"--- example {number}: {len(example.input_ids)} tokens, {example.supervised} supervised"
        blocks.append(f"{head}\n{_marked(example, tokenizer, color)}")
    return "\n".join([*blocks, "---", *_statistics(rendered)])


def _marked(example: Example, tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    left, right = (_PLAIN + _BOLD_GREEN, _PLAIN + _DIM) if color else ("⟦", "⟧")
    parts = [
        f"{left}{tokenizer.decode(ids)}{right}" if supervised else tokenizer.decode(ids)
        for supervised, ids in _stretches(example)
    ]
    return (_DIM + "".join(parts) + _PLAIN) if color else "".join(parts)


def _stretches(example: Example) -> Iterator[tuple[bool, list[int]]]:
    run: list[int] = []
    state = False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if (label != IGNORED) != state:
            if run:
                yield state, run
            run, state = [], label != IGNORED
        run.append(token)
    if run:
        yield state, run


def _statistics(rendered: Rendered) -> list[str]:
    lengths = sorted(len(example.input_ids) for example in rendered.examples)
    supervised = sum(example.supervised for example in rendered.examples)
    quantile = lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))]
    return [
        str(rendered),
        f"tokens: {sum(lengths)}, of which supervised: {supervised} ({supervised / sum(lengths):.0%})",
        f"length in tokens: shortest {lengths[0]}, median {statistics.median(lengths):g}, 95th percentile {quantile}, "
        f"longest {lengths[-1]}",
    ]
