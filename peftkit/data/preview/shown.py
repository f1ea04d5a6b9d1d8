"""What is shown of one example, whatever shows it: pieces that are learned, read or cut."""

import dataclasses
from typing import Literal

Kind = Literal["learned", "read", "cut"]
"""Learned: the loss is on it. Read: the model sees it alone. Cut: the model does not see it."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token, or several that only together make a character.

    Attributes:
        text: What it says.
        kind: Whether it is learned, read or cut.
        ids: The numbers of its tokens; none where it is no token, such as the name of a class.
        is_special: Whether it is a special token of the tokenizer.
        tag: What is to be predicted of it; empty for most.
    """

    text: str
    kind: Kind
    ids: tuple[int, ...] = ()
    is_special: bool = False
    tag: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows in words."""

    png: bytes
    description: str


@dataclasses.dataclass(frozen=True)
class Wave:
    """The loudness of a sound over time.

    Attributes:
        lows, highs: The lowest and the highest sample of each of some hundred stretches, from -1
            to 1.
        seconds: How long the sound is.
        read_seconds: How much of it the model hears.
    """

    lows: tuple[float, ...]
    highs: tuple[float, ...]
    seconds: float
    read_seconds: float


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of an example, such as its source, its target or its picture.

    Attributes:
        name: What it is; empty where there is only one.
        pieces: The text, if it has one.
        omitted: How many tokens are left out after each number of pieces, to be short.
        picture: A picture of it.
        wave: A sound.
    """

    name: str
    pieces: tuple[Piece, ...] = ()
    omitted: tuple[tuple[int, int], ...] = ()
    picture: Picture | None = None
    wave: Wave | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example.

    Attributes:
        sections: Its parts, in the order in which the model reads them.
        tokens: How many tokens the model reads.
        learned: How many of them are learned; None where the loss is not on tokens.
        notes: What a person should know of it, a sentence each.
        where: The file and the row that it was made of.
    """

    sections: tuple[Section, ...]
    tokens: int = 0
    learned: int | None = None
    notes: tuple[str, ...] = ()
    where: str = ""

    def count(self) -> str:
        """Return how many tokens there are, in words; nothing where there are none."""
        if not self.tokens:
            return ""
        learned = "" if self.learned is None else f", {self.learned:,} learned"
        return f"{self.tokens:,} tokens{learned}"


def said(name: str, value: object, kind: Kind = "learned") -> Section:
    """Return a section of something that has no tokens, such as a label that is learned."""
    return Section(name, (Piece(str(value), kind),))
