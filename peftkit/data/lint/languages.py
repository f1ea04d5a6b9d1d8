"""Rows in another language than most, found by py3langid."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from peftkit.data.lint.items import Finding, LintItem, either, not_done, shown, spread
from peftkit.data.lint.scripts import ADDRESS
from peftkit.data.lint.sketches import split_words

_LOOKED_AT = 1_000  # rows
_READ = 400  # characters of a text
_FEWEST = 10  # words; fewer are too often names or code
_SURE = 0.95  # probability
# Others are too much like one of these: Nigerian Pidgin, say, like English with mistakes. zxx is no
# language, such as code.
_LANGUAGES = [
    *("af", "am", "ar", "az", "be", "bg", "bn", "bs", "ca", "cs", "cy", "da", "de", "el", "en"),
    *("eo", "es", "et", "eu", "fa", "fi", "fr", "ga", "gl", "gu", "he", "hi", "hr", "hu", "hy"),
    *("id", "is", "it", "ja", "ka", "kk", "km", "kn", "ko", "ky", "lo", "lt", "lv", "mk", "ml"),
    *("mn", "mr", "ms", "my", "ne", "nl", "no", "pa", "pl", "ps", "pt", "ro", "ru", "sk", "sl"),
    *("sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "uz", "vi", "zh", "zu"),
    "zxx",
]
_ODD = 0.1  # share of the texts up to which a language is the odd one


def find_odd_languages(items: Sequence[LintItem]) -> list[Finding]:
    """Find texts, and answers, in another language than at least nine tenths of them.

    Of more than 1,000 rows, it looks at 1,000.

    Raises:
        NotDoneError: the py3langid library is not installed.
    """
    model = _load_model()
    texts: defaultdict[str, list[int]] = defaultdict(list)
    answers: defaultdict[str, list[int]] = defaultdict(list)
    for number in spread(len(items), _LOOKED_AT):
        item = items[number]
        texts[_language_of(item.text, model)].append(number)
        answers[_language_of(item.answer or "", model)].append(number)
    return [*_describe("text", texts, items), *_describe("answer", answers, items)]


@functools.cache
def _load_model() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as problem:
        raise not_done("other languages") from problem

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model.set_languages(_LANGUAGES)
    return model


def _language_of(text: str, model: Any) -> str:
    """Return the code of a text's language; an empty one if it is too short or not clear."""
    start = ADDRESS.sub(" ", text[:_READ]) if "://" in text else text[:_READ]
    if len(split_words(start)) < _FEWEST:
        return ""
    language, probability = model.classify(start)
    is_sure = probability >= _SURE and language != "zxx"
    return str(language) if is_sure else ""


def _describe(
    name: str, languages: Mapping[str, list[int]], items: Sequence[LintItem]
) -> list[Finding]:
    known = {language: numbers for language, numbers in languages.items() if language}
    if len(known) < 2:
        return []
    usual, *odd = sorted(known, key=lambda language: -len(known[language]))
    numbers: list[int] = []
    for language in odd:
        numbers += known[language]
    count, judged = len(numbers), len(numbers) + len(known[usual])
    if count > _ODD * judged:
        return []
    numbers.sort()
    return [
        Finding(
            "languages",
            count,
            f"of {judged:,} {name}s {either(count, 'is', 'are')} in another language "
            f"({', '.join(odd[:5])}) than most ({usual})",
            "leave out what is not meant",
            shown(items, numbers),
        )
    ]
