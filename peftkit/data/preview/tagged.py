"""What is shown of words with tags: the tokens that carry them, and the words without a token."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from peftkit.data.preview.shown import Kind, Piece, Shown
from peftkit.data.preview.tokens import token_section
from peftkit.labels import IGNORED


def show_tagged(
    ids: Sequence[int],
    labels: Sequence[int],
    names: Sequence[str],
    words: Sequence[tuple[str, str, int | None]],
    tokenizer: Any,
) -> Shown:
    """Return a sentence with the tags of its words at the tokens that carry them.

    Args:
        ids: The tokens that the model reads.
        labels: The number of a tag for each, or -100.
        names: The tags.
        words: Each word, its tag and the place of its token, or None.
        tokenizer: Decodes the tokens.
    """
    kinds: list[Kind] = ["read" if label == IGNORED else "learned" for label in labels]
    tags = ["" if label == IGNORED else names[label] for label in labels]
    section = token_section("", ids, kinds, tokenizer, tags)
    end = len(words)  # the first of the words that are beyond the end
    while end and words[end - 1][2] is None:
        end -= 1
    notes = []
    if end < len(words):
        notes.append(
            f"The last {len(words) - end:,} of {len(words):,} words are beyond data.max_length."
        )
    beyond = [Piece(f" {word}", "cut", tag=tag) for word, tag, _ in words[end:]]
    section = dataclasses.replace(section, pieces=(*section.pieces, *beyond))
    seen: set[int] = set()
    for word, tag, place in words[:end]:
        if place is None:
            notes.append(f"The tokenizer leaves nothing of {word!r} ({tag}), so it is not learned.")
        elif place in seen:
            notes.append(f"{word!r} ({tag}) shares a token with the word before, whose tag counts.")
        else:
            seen.add(place)
    learned = kinds.count("learned")
    return Shown((section,), len(ids), learned, tuple(notes))
