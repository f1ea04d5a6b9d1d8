"""Rows in another script than most, and words with letters of two scripts that look alike."""

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from peftkit.data.lint.items import Finding, LintItem, either, shown

_ODD = 0.1  # share of the rows up to which a script is the odd one
_FEWEST = 10  # letters that tell a row's script
_CLEAR = 0.8  # share of them that are in one script

# The first word of a letter's name in Unicode is its script; that of a sign such as a mathematical
# letter is another word.
_CALLED = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
_SCRIPTS = {
    *("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "ETHIOPIC"),
    *("DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA"),
    *("MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "MONGOLIAN"),
}

_KANA = 0.25  # kana for each Chinese character in Japanese; Chinese has a few as ornaments
ADDRESS = re.compile(r"\w+://\S+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_LIKE_LATIN = frozenset(  # Cyrillic
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455"  # aeopcyxijs
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
)
_LIKE_CYRILLIC = frozenset("aeopcyxABEKMHOPCTYX")  # Latin


def find_odd_scripts(items: Sequence[LintItem]) -> list[Finding]:
    """Find the rows in another script than at least nine tenths of the rows."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        script = script_of(item.content)
        if script is not None:
            rows[script].append(number)
    if len(rows) < 2:
        return []
    usual, *odd = sorted(rows, key=lambda script: -len(rows[script]))
    numbers = sorted(number for script in odd for number in rows[script])
    if len(numbers) > _ODD * (len(numbers) + len(rows[usual])):
        return []
    written = either(len(numbers), "row is", "rows are")
    return [
        Finding(
            "scripts",
            len(numbers),
            f"{written} in {' or '.join(odd[:3])} letters, and most are in {usual} ones",
            "leave out what is not meant",
            shown(items, numbers),
        )
    ]


def find_lookalikes(items: Sequence[LintItem]) -> list[Finding]:
    """Find rows with a word in which a letter is of another script and looks as if it were not."""
    numbers = []
    for number, item in enumerate(items):
        if not item.content.isascii() and any(map(_is_disguised, _WORD.findall(item.content))):
            numbers.append(number)
    if not numbers:
        return []
    has = either(len(numbers), "row has", "rows have")
    return [
        Finding(
            "look-alike letters",
            len(numbers),
            f"{has} words with Cyrillic letters among Latin ones that look the same",
            "write such words in one script, as a model reads them as others",
            shown(items, numbers),
        )
    ]


def script_of(text: str) -> str | None:
    """Return the script of four fifths of a text's letters, or None if there is none."""
    counts: Counter[str] = Counter()
    if "://" in text:
        text = ADDRESS.sub(" ", text)
    for character, count in Counter(text).items():
        script = _script_of_letter(character)
        if script is not None:
            counts[script] += count
    total = counts.total()
    kana = counts["Japanese"]
    if kana > _KANA * counts["Chinese"]:  # Japanese is written with Chinese characters, too
        counts["Japanese"] += counts.pop("Chinese", 0)
    script, count = max(counts.items(), key=lambda entry: entry[1], default=("", 0))
    return script if total >= _FEWEST and count >= _CLEAR * total else None


@functools.cache
def _script_of_letter(character: str) -> str | None:
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "").partition(" ")[0]
    return _CALLED.get(script) or (script.title() if script in _SCRIPTS else None)


def _is_disguised(word: str) -> bool:
    """Whether the letters of one script in a word all look like letters of its other script."""
    if word.isascii():
        return False
    scripts = [_script_of_letter(character) for character in word]
    if set(scripts) != {"Latin", "Cyrillic"}:
        return False
    letters: dict[str | None, set[str]] = {"Latin": set(), "Cyrillic": set()}
    for character, script in zip(word, scripts, strict=True):
        letters[script].add(character)
    return letters["Cyrillic"] <= _LIKE_LATIN or letters["Latin"] <= _LIKE_CYRILLIC
