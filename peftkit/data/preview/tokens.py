"""Tokens as a person reads them: the text of each, though some say nothing alone."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from peftkit.data.preview.shown import Kind, Piece, Section

_MOST_TOKENS = 3000  # of one section; a screen shows about a thousand
_MOST_CUT = 300
_NO_CHARACTER = "\ufffd"  # what tokenizers write for bytes that are no character


def token_section(
    name: str, ids: Sequence[int], kinds: Sequence[Kind], tokenizer: Any, tags: Sequence[str] = ()
) -> Section:
    """Return a section of a text; of one that is very long, its beginning and what is around a cut.

    The arguments are those of `token_pieces`, and what the section is called.
    """
    pieces: list[Piece] = []
    omitted: list[tuple[int, int]] = []
    for start, end, left_out in _kept(kinds):
        pieces += token_pieces(ids, kinds, tokenizer, tags, range(start, end))
        if left_out:
            omitted.append((len(pieces), left_out))
    return Section(name, tuple(pieces), tuple(omitted))


def _kept(kinds: Sequence[Kind]) -> Iterator[tuple[int, int, int]]:
    """Yield where the stretches that are shown begin and end, and how many tokens follow unseen."""
    start = 0
    for is_cut, group in itertools.groupby(kinds, key=lambda kind: kind == "cut"):
        end = start + len(list(group))
        most = _MOST_CUT if is_cut else _MOST_TOKENS
        left_out = end - start - most
        if left_out <= 0:
            yield start, end, 0
        elif is_cut:
            yield start, start + most, left_out
        else:
            yield start, start + most // 2, left_out
            yield end - most // 2, end, 0
        start = end


def token_pieces(
    ids: Sequence[int],
    kinds: Sequence[Kind],
    tokenizer: Any,
    tags: Sequence[str] = (),
    places: range | None = None,
) -> list[Piece]:
    """Return the pieces of a text.

    What a token says depends on those before it: a word has a space before it where it is not the
    first, and an emoji may have a token for each of its bytes. So each is decoded after those
    before, and tokens that are no character alone become one piece, unless their kinds differ.

    Args:
        ids: The tokens.
        kinds: The kind of each.
        tokenizer: Decodes them.
        tags: What is to be predicted of each; none for most tasks.
        places: The places of the tokens to return; None for all.
    """
    places = range(len(ids)) if places is None else places
    backend = getattr(tokenizer, "backend_tokenizer", None)
    joins_with_spaces = "WordPiece" in repr(getattr(backend, "decoder", ""))  # words without "##"
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    pieces = []
    for before, start, end in _groups(ids, kinds, tokenizer, special, places):
        own = tuple(ids[start:end])
        is_special = own[0] in special
        text = _decode(own, tokenizer) if is_special else _text(ids, before, start, end, tokenizer)
        if joins_with_spaces and start and ids[start - 1] in special:
            text = text.lstrip(" ")
        tag = tags[start] if tags else ""
        pieces.append(Piece(text, kinds[start], own, is_special, tag))
    return pieces


def _groups(
    ids: Sequence[int], kinds: Sequence[Kind], tokenizer: Any, special: set[int], places: range
) -> Iterator[tuple[int, int, int]]:
    """Yield where the piece before each piece begins, and where the piece begins and ends."""
    start = places.start
    before = max(0, start - 1)
    for place in places:
        end = place + 1
        text = _text(ids, before, start, end, tokenizer)
        is_whole = not text.endswith(_NO_CHARACTER)
        if is_whole and _NO_CHARACTER in text and place > start:  # those before stay halves
            yield before, start, place
            before, start = start, place
        is_last = end == places.stop or kinds[end] != kinds[start] or ids[end] in special
        if is_whole or is_last:
            yield before, start, end
            before, start = start, end


def _text(ids: Sequence[int], before: int, start: int, end: int, tokenizer: Any) -> str:
    """Return what tokens say after those of the piece before them."""
    earlier = _decode(ids[before:start], tokenizer)
    both = _decode(ids[before:end], tokenizer)
    if both.startswith(earlier):
        return both[len(earlier) :]
    return _decode(ids[start:end], tokenizer)  # those before are half a character


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
