"""Answers from which nothing can be learned: empty, much too short, or always the same."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from peftkit.data.lint.items import Finding, LintItem, either, shown

_SHORT = 4  # characters
_USUAL = 40  # characters that half of the answers have, where one of 4 is suspicious
_RARE = 0.05  # share of the rows; where more answers are short, they are meant to be

_REPEATED_LENGTH = 20  # characters; a shorter answer, such as "Yes", may well be the right one
_REPEATED_ROWS = 5
_REPEATED_SHARE = 0.01


def find_unreadable(items: Sequence[LintItem]) -> list[Finding]:
    """Find rows at which a run would stop if it needed them."""
    numbers = []
    for number, item in enumerate(items):
        if item.problem:
            numbers.append(number)
    if not numbers:
        return []
    first = items[numbers[0]].problem
    return [
        Finding(
            "rows that cannot be read",
            len(numbers),
            either(len(numbers), "row cannot be read", "rows cannot be read"),
            first if len(numbers) == 1 else f"of the first, {first}",
            shown(items, numbers),
        )
    ]


def find_empty_answers(items: Sequence[LintItem]) -> list[Finding]:
    """Find rows whose answer is empty, or nothing but white space."""
    empty = []
    for number, item in enumerate(items):
        if item.answer is not None and not item.answer.strip():
            empty.append(number)
    if not empty:
        return []
    name = _name(items)
    return [
        Finding(
            "empty answers",
            len(empty),
            either(len(empty), f"{name} is empty", f"{name}s are empty"),
            either(len(empty), "fill it in, or leave the row", "fill them in, or leave the rows")
            + " out with data.skip_empty: true",
            shown(items, empty),
        )
    ]


def find_cut_answers(counts: Mapping[str, int]) -> list[Finding]:
    """Report the answers that lost their end when the rows became tokens.

    Args:
        counts: What happened to the rows; ``answers_cut`` is read, and how many ``rows`` there are.
    """
    count = counts.get("answers_cut", 0)
    if not count:
        return []
    loses = either(count, "loses", "lose")
    return [
        Finding(
            "cut answers",
            count,
            f"of {counts['rows']:,} rows {loses} the end of an answer at data.max_length",
            "raise it, or leave such rows out",
        )
    ]


def find_short_answers(items: Sequence[LintItem]) -> list[Finding]:
    """Find the few answers of at most 4 characters where most are much longer."""
    lengths, short = [], []
    for number, item in enumerate(items):
        length = len((item.answer or "").strip())
        if length:
            lengths.append(length)
            if length <= _SHORT:
                short.append(number)
    usual = statistics.median(lengths) if lengths else 0
    if not short or usual < _USUAL or len(short) > _RARE * len(lengths):
        return []
    name = _name(items)
    has = either(len(short), f"{name} has", f"{name}s have")
    return [
        Finding(
            "short answers",
            len(short),
            f"{has} at most {_SHORT} characters, and half of all have {usual:.0f} or more",
            "see whether any was cut or stands for a missing one",
            shown(items, short),
        )
    ]


def find_repeated_answers(items: Sequence[LintItem]) -> list[Finding]:
    """Find the sentences that are the answer to many different texts."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    asked = set()
    for number, item in enumerate(items):
        answer = " ".join((item.answer or "").split())
        if len(answer) >= _REPEATED_LENGTH and (item.text, answer) not in asked:
            asked.add((item.text, answer))
            rows[answer].append(number)
    found = []
    for answer, numbers in rows.items():
        count = len(numbers)
        if count >= _REPEATED_ROWS and count >= _REPEATED_SHARE * len(items):
            found.append(
                Finding(
                    "repeated answers",
                    count,
                    f"rows with different texts have the same answer, {_quoted(answer)}",
                    "see whether it answers all of them",
                    shown(items, numbers),
                )
            )
    return sorted(found, key=lambda finding: -finding.count)[:3]


def _name(items: Sequence[LintItem]) -> str:
    """Return what the learned texts are called: rows of nothing else are texts."""
    return "answer" if any(item.text or item.file for item in items) else "text"


def _quoted(text: str) -> str:
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."'
