"""Checks whether a model knows the tokens and the positions of its examples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from peftkit.data.examples import largest_token, lengths_of
from peftkit.data.rows import Rows
from peftkit.errors import ConfigError
from peftkit.tasks.base import Task


def check_tokens(model: nn.Module, task: Task, rows: Rows, examples: Sequence[Any]) -> None:
    """Check that the model has an embedding for each token and for each position.

    Args:
        model: The model.
        task: Has made the examples.
        rows: What it has made them of; where each row gave one, a message can name the row.
        examples: What the model is to read.

    Raises:
        ConfigError: names the largest token, or the longest text.
    """
    largest = largest_token(examples)
    if largest < 0:  # images or sounds
        return
    lengths = lengths_of(examples)
    longest, positions = int(lengths.max()), _position_count(model)
    if positions is not None and longest > positions:
        number = int(lengths.argmax())
        is_known = len(rows) == len(examples) and _length(task, rows, number) == longest
        where = f"{rows.where(number)}: " if is_known else ""
        raise ConfigError(
            f"{where}a text has {longest} tokens, and the model knows {positions} positions: lower "
            "data.max_length"
        )
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    vocabulary = getattr(embeddings, "num_embeddings", None)
    if vocabulary is not None and largest >= vocabulary:
        raise ConfigError(
            f"the tokenizer gives the token {largest}, and the model has embeddings for "
            f"{vocabulary}: they do not belong together, or tokens were added and the embeddings "
            "not enlarged and trained"
        )


def _length(task: Task, rows: Rows, number: int) -> int:
    """Return the length of the longest example of one row, in tokens."""
    examples = task.encode([rows[number]], Counter())[0]
    return max(map(len, examples), default=0)


def _position_count(model: nn.Module) -> int | None:
    """Return for how many positions the model has learned embeddings, or None if it has none."""
    counts = []
    for name, module in model.named_modules():
        is_positional = name.rpartition(".")[2] in ("position_embeddings", "wpe")
        if isinstance(module, nn.Embedding) and is_positional:
            counts.append(module.num_embeddings)
    return min(counts, default=None)
