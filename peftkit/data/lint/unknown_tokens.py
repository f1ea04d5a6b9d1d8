"""Texts with characters or words that the tokenizer does not know."""

from collections.abc import Sequence
from typing import Any

from peftkit.data.lint.items import Finding, LintItem, either, shown, spread

_LOOKED_AT = 2_000  # rows
_BATCH = 100
_READ = 4_000  # characters of a row


def find_unknown_tokens(items: Sequence[LintItem], tokenizer: Any) -> list[Finding]:
    """Find the rows that have a token for "unknown".

    Of more than 2,000 rows, it looks at 2,000, and of each at the first 4,000 characters.

    Args:
        items: Rows.
        tokenizer: Of transformers; None, or an image processor, knows no tokens.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return []
    numbers = spread(len(items), _LOOKED_AT)
    tokens = 0
    found, unknown_tokens = [], 0
    for start in range(0, len(numbers), _BATCH):
        batch = numbers[start : start + _BATCH]
        texts = [items[number].content[:_READ] for number in batch]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for number, ids in zip(batch, encoded, strict=True):
            count = ids.count(unknown)
            tokens += len(ids)
            unknown_tokens += count
            if count:
                found.append(number)
    if not found:
        return []
    share = (
        f"{unknown_tokens / tokens:.1%}" if unknown_tokens >= tokens / 1000 else "less than 0.1%"
    )
    return [
        Finding(
            "unknown tokens",
            len(found),
            f"of {len(numbers):,} rows {either(len(found), 'has', 'have')} tokens that the "
            f"tokenizer does not know ({share} of all)",
            "the model cannot read them; replace the characters, or take another model",
            shown(items, found),
        )
    ]
