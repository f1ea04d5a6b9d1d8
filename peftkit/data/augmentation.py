"""Noisy copies of training rows: words left out and swapped (EDA, arXiv:1901.11196, RD and RS),
typing errors, a function.
"""

import importlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peftkit.config.task_sections import AugmentSettings
from peftkit.data.row_files import Row
from peftkit.errors import ConfigError, DataError

# Scripts without spaces between words, each of whose characters is taken for a word: kana, Chinese,
# and their punctuation.
_IDEOGRAPHS = (
    "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)
_WORD_AND_GAP = re.compile(rf"([{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+)(\s*)")
_POSITIONS = ("spans", "tokens")

Word = tuple[str, str]


def augment_rows(
    rows: Sequence[Row], columns: Sequence[str], settings: AugmentSettings, seed: int
) -> list[Row]:
    """Return the rows, and after them `copies` noisy copies of each, with all that is not a text
    unchanged.

    A copy depends on its text, its number and the seed, so that other rows and their order change
    nothing. No text becomes empty; one without a word stays as it is. In Chinese and Japanese each
    character is a word.

    Args:
        rows: Rows with texts.
        columns: The columns that get noise.
        settings: The noise. Its function, if it names one, goes before the rest; it is called with
            a text for each copy, and of the texts that it returns, if several, one is drawn.
        seed: Seed of the noise.

    Raises:
        ConfigError: the function cannot be imported or called.
        DataError: a row has positions or tokens that noise would move, lacks a text, or the
            function returns something else.
    """
    if not settings.copies:
        return list(rows)
    function = None if settings.function is None else _imported(settings.function)
    copies = []
    for number, row in enumerate(rows, 1):
        _check(row, columns, number)
        for copy in range(settings.copies):
            noisy = {
                name: _noisy(row[name], f"{seed} {copy} {name}", settings, function)
                for name in columns
            }
            copies.append(row | noisy)
    return [*rows, *copies]


def _check(row: Row, columns: Sequence[str], number: int) -> None:
    for name in _POSITIONS:
        if name in row:
            raise DataError(
                f"row {number} has {name!r}, and noise in the text would move them: set augment.copies 0"
            )
    for name in columns:
        if not isinstance(row.get(name), str):
            raise DataError(f"row {number}: {name!r} is {row.get(name)!r}; it must be a text")


def _noisy(
    text: str, salt: str, settings: AugmentSettings, function: Callable[[str], Any] | None
) -> str:
    draw = random.Random(f"{salt} {text}")
    if function is not None and text.strip():
        text = _returned(function(text), settings.function, draw)
    words: list[Word] = _WORD_AND_GAP.findall(text)
    if not words:
        return text
    words = _without_some(words, settings.word_dropout, draw)
    words = _with_neighbours_swapped(words, settings.swaps, draw)
    return "".join(
        _mistyped(word, settings.character_noise, draw) + gap for word, gap in words
    ).rstrip()


def _without_some(words: list[Word], probability: float, draw: random.Random) -> list[Word]:
    if not probability:
        return words
    return [word for word in words if draw.random() >= probability] or [draw.choice(words)]


def _with_neighbours_swapped(words: list[Word], share: float, draw: random.Random) -> list[Word]:
    """Swap neighbours share x words times, at least once; the gaps stay where they are."""
    texts = [text for text, _ in words]
    for _ in range(max(1, round(share * len(words))) if share and len(words) > 1 else 0):
        place = draw.randrange(len(words) - 1)
        texts[place], texts[place + 1] = texts[place + 1], texts[place]
    return [(text, gap) for text, (_, gap) in zip(texts, words, strict=True)]


def _mistyped(word: str, probability: float, draw: random.Random) -> str:
    """Leave out, double or swap letters; a word keeps one at least."""
    return "".join(_typed(word, probability, draw)) or word if probability else word


def _typed(word: str, probability: float, draw: random.Random) -> Iterator[str]:
    place = 0
    while place < len(word):
        letter = word[place]
        place += 1
        if not letter.isalpha() or draw.random() >= probability:
            yield letter
            continue
        kind = draw.choice(("left out", "doubled", "swapped"))
        if kind == "doubled":
            yield letter * 2
        elif kind == "swapped":
            yield word[place : place + 1] + letter
            place += 1


def _imported(path: str) -> Callable[[str], Any]:
    """Return the function that ``package.module:name`` stands for."""
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


def _returned(result: object, path: str | None, draw: random.Random) -> str:
    texts = result if isinstance(result, list) else [result]
    if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise DataError(
            f"augment.function {path!r} returned {result!r}; it must return a text or a list of texts"
        )
    chosen: str = draw.choice(texts)
    return chosen
