"""Markdown tables."""

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; line breaks and bars in cells are made harmless."""
    return "\n".join(
        "| " + " | ".join(map(_cell, row)) + " |" for row in (head, ["---"] * len(head), *rows)
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
