"""Noisy copies of training rows: words left out or swapped, typing errors, a user's function.

Words are left out and swapped as in EDA (arXiv:1901.11196), random deletion and random swap.
"""

import importlib
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from peftkit.config.task_sections import AugmentSettings
from peftkit.data.rows import Row, Rows
from peftkit.errors import ConfigError, DataError

# Kana, Chinese characters and their punctuation. These scripts have no spaces between words, so
# each character counts as a word.
_IDEOGRAPHS = (
    "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)
_WORD_AND_GAP = re.compile(rf"([{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+)(\s*)")
_POSITIONS = ("spans", "tokens")

Word = tuple[str, str]  # a word, and the white space after it


def augment_rows(
    rows: Sequence[Row], columns: Sequence[str], settings: AugmentSettings, seed: int
) -> Rows:
    """Return the rows, followed by `copies` noisy copies of each. Only the texts change.

    A copy is made when it is asked for. It depends on its text, its number and the seed, but not on
    the other rows or their order. No text becomes empty, and a text without words stays as it is.
    In Chinese and Japanese, each character is a word.

    Args:
        rows: Rows with texts.
        columns: The columns that get noise.
        settings: The noise. A function, if there is one, comes before the rest. It is called with
            the text of each copy; if it returns several texts, one is drawn.
        seed: The seed of the noise.

    Raises:
        ConfigError: the function cannot be imported or called.
        DataError: when a copy is asked for: the row has positions or tokens that noise would move,
            or lacks a text; or the function does not return a text.
    """
    plain = Rows.of(rows)
    if not settings.copies:
        return plain
    function = None if settings.function is None else _import_function(settings.function)

    def add_noise(row: Row, copy: int) -> Row:
        _check_row(row, columns)
        noisy = dict(row)
        for column in columns:
            text = row[column]
            draw = random.Random(f"{seed} {copy} {column} {text}")
            noisy[column] = _add_noise(text, draw, settings, function)
        return noisy

    copies = [plain.map(partial(add_noise, copy=copy)) for copy in range(settings.copies)]
    numbers = np.arange(settings.copies * len(plain)).reshape(settings.copies, len(plain))
    of_each_row = Rows.joined(copies).select(numbers.T.ravel())  # the copies of a row in succession
    return Rows.joined([plain, of_each_row])


def _check_row(row: Row, columns: Sequence[str]) -> None:
    for name in _POSITIONS:
        if name in row:
            raise DataError(
                f"there is {name!r}, and noise in the text would move the positions: set "
                "augment.copies 0"
            )
    for name in columns:
        if not isinstance(row.get(name), str):
            raise DataError(f"{name!r} is {row.get(name)!r}; it must be a text")


def _add_noise(
    text: str,
    draw: random.Random,
    settings: AugmentSettings,
    function: Callable[[str], Any] | None,
) -> str:
    if function is not None and text.strip():
        text = _draw_text(function(text), settings.function, draw)
    words: list[Word] = _WORD_AND_GAP.findall(text)
    if not words:
        return text
    words = _drop_words(words, settings.word_dropout, draw)
    words = _swap_neighbours(words, settings.swaps, draw)
    noisy = ""
    for word, gap in words:
        noisy += _mistype(word, settings.character_noise, draw) + gap
    return noisy.rstrip()


def _drop_words(words: list[Word], probability: float, draw: random.Random) -> list[Word]:
    """Leave out each word with a probability, but never all of them."""
    if not probability:
        return words
    kept = [word for word in words if draw.random() >= probability]
    return kept or [draw.choice(words)]


def _swap_neighbours(words: list[Word], share: float, draw: random.Random) -> list[Word]:
    """Swap neighbours, share * words times and at least once. The white space stays in place."""
    if not share or len(words) < 2:
        return words
    texts = [text for text, _ in words]
    for _ in range(max(1, round(share * len(words)))):
        place = draw.randrange(len(words) - 1)
        texts[place], texts[place + 1] = texts[place + 1], texts[place]
    return [(text, gap) for text, (_, gap) in zip(texts, words, strict=True)]


def _mistype(word: str, probability: float, draw: random.Random) -> str:
    """Leave out, double or swap letters. A word never loses its last letter."""
    if not probability:
        return word
    typed = ""
    place = 0
    while place < len(word):
        letter = word[place]
        place += 1
        if not letter.isalpha() or draw.random() >= probability:
            typed += letter
            continue
        error = draw.choice(("left out", "doubled", "swapped"))
        if error == "doubled":
            typed += letter * 2
        elif error == "swapped":
            typed += word[place : place + 1] + letter
            place += 1
    return typed or word


def _import_function(path: str) -> Callable[[str], Any]:
    """Return the function that ``package.module:name`` names."""
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"augment.function is {path!r}; it must be package.module:name")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(f"augment.function {path!r} cannot be imported: {problem}") from problem
    if not callable(function):
        raise ConfigError(
            f"augment.function {path!r} is {type(function).__name__}, which cannot be called"
        )
    return function  # type: ignore[no-any-return]


def _draw_text(returned: object, path: str | None, draw: random.Random) -> str:
    """Return the text that a user's function returned, or one of several."""
    texts = returned if isinstance(returned, list) else [returned]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"augment.function {path!r} returned {returned!r}; it must return a text or a list of "
            "texts"
        )
    chosen: str = draw.choice(texts)
    return chosen
