"""Characters that are not seen, and what is shown for them."""

import re
import unicodedata
from collections.abc import Sequence

from peftkit.data.preview.shown import Piece

LINE_END, TAB, SPACE = "↵", "→", "·"
_DOUBTFUL_SPACES = re.compile(r"(?m)^ +| +$| {2,}")
_JOINERS = "\u200c\u200d"  # emoji and several scripts are written with these


def marks(pieces: Sequence[Piece]) -> list[list[str]]:
    """Return a mark for each character of each piece; empty for those that are seen as they are.

    A space is marked only where a reader would miss it: beside another one, and at the beginning
    and the end of a line or of what is learned.
    """
    text = "".join(piece.text for piece in pieces)
    doubtful: set[int] = set()
    for match in _DOUBTFUL_SPACES.finditer(text):
        doubtful.update(range(*match.span()))
    found = []
    start = 0
    for number, piece in enumerate(pieces):
        own = [_mark(character) for character in piece.text]
        for place, character in enumerate(piece.text):
            if character == " " and start + place in doubtful:
                own[place] = SPACE
        if own and piece.text[0] == " " and _begins(pieces, number):
            own[0] = SPACE
        if own and piece.text[-1] == " " and _begins(pieces, number + 1):
            own[-1] = SPACE
        found.append(own)
        start += len(piece.text)
    return found


def _begins(pieces: Sequence[Piece], number: int) -> bool:
    """Return whether something else begins with a piece: learned after read, a special token."""
    if not 0 < number < len(pieces):
        return True
    before, after = pieces[number - 1], pieces[number]
    return before.kind != after.kind or before.is_special or after.is_special


def _mark(character: str) -> str:
    if character == "\n":
        return LINE_END
    if character == "\t":
        return TAB
    category = unicodedata.category(character)
    is_unseen = category in ("Cc", "Cf", "Zl", "Zp") and character not in _JOINERS
    is_space = category == "Zs" and character != " "
    if is_unseen or is_space or category == "Cs":
        return f"U+{ord(character):04X}"
    return ""


def printable(text: str) -> str:
    """Return a text in one line that no terminal and no page takes for a command."""
    return "".join(_mark(character) or character for character in text)
