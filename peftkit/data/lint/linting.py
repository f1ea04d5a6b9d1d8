"""The lint of a run's rows: every check, and what they found."""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from peftkit.data.lint.answers import (
    find_cut_answers,
    find_empty_answers,
    find_repeated_answers,
    find_short_answers,
    find_unreadable,
)
from peftkit.data.lint.duplicates import find_duplicates, find_label_conflicts, find_overlap
from peftkit.data.lint.fingerprints import take_fingerprints
from peftkit.data.lint.items import Finding, LintItem, NotDoneError, either, spread
from peftkit.data.lint.labels import find_label_variants, find_single_labels, find_uneven_classes
from peftkit.data.lint.languages import find_odd_languages
from peftkit.data.lint.near_duplicates import find_near_duplicates
from peftkit.data.lint.personal_data import (
    find_bank_numbers,
    find_email_addresses,
    find_phone_numbers,
)
from peftkit.data.lint.scripts import find_lookalikes, find_odd_scripts
from peftkit.data.lint.unknown_tokens import find_unknown_tokens

THOROUGH = 20_000  # rows that are looked at closely
AT_START = 5_000  # rows that a run looks at when it starts

_CHARACTERS = 24_000_000  # of all rows that are kept in memory at a time
_PROBED = 100  # rows whose length is looked at first
_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class LintReport:
    """What the lint found; as a text, a line for each finding."""

    findings: tuple[Finding, ...]
    looked_at: str
    """How many rows there are, and how many were looked at."""
    notes: tuple[str, ...]
    """What was not looked for, and why."""

    def __str__(self) -> str:
        count = len(self.findings)
        warnings = f"{count or 'no'} {either(count, 'warning', 'warnings')}"
        lines = [f"lint of {self.looked_at}: {warnings}"]
        width = max((len(f"{finding.count:,}") for finding in self.findings), default=0) + 2
        for finding in self.findings:
            lines += _lines(finding, width)
        for note in self.notes:
            lines.append(textwrap.fill(note, _WIDTH, initial_indent="  ", subsequent_indent="  "))
        return "\n".join(lines)


def lint(
    training: Sequence[LintItem],
    held_out: Sequence[LintItem] = (),
    *,
    tokenizer: Any = None,
    limit: int = THOROUGH,
    thorough: bool = True,
    counts: Mapping[str, int] | None = None,
) -> LintReport:
    """Look for what is likely not meant in the rows that a model learns from.

    Equal rows, labels and overlap are looked for in all rows, with 20 bytes of memory for each; the
    other checks look at a sample that is evenly spread over the rows. Nothing is changed.

    Args:
        training: The rows to learn from, such as `LintItems`.
        held_out: The rows to measure on; only their overlap with the others is looked for.
        tokenizer: If given, tokens that it does not know are looked for.
        limit: Rows in the sample of each side, at least 1.
        thorough: If not, all checks look at the sample only, and none looks for languages.
        counts: What happened to the training rows when they became tokens; ``answers_cut`` is
            reported.
    """
    sample, held_out_sample = _sample(training, limit), _sample(held_out, limit)
    every: Sequence[LintItem] = sample
    every_held_out: Sequence[LintItem] = held_out_sample
    if thorough and len(sample) < len(training):
        every = training
    if thorough and len(held_out_sample) < len(held_out):
        every_held_out = held_out
    prints, held_out_prints = take_fingerprints(every), take_fingerprints(every_held_out)
    checks: list[Callable[[], list[Finding]]] = [
        partial(find_unreadable, sample),
        partial(find_overlap, every, prints, every_held_out, held_out_prints),
        partial(find_duplicates, every, prints),
        partial(find_near_duplicates, sample, held_out_sample),
        partial(find_label_conflicts, every, prints),
        partial(find_label_variants, every, prints),
        partial(find_single_labels, every, prints),
        partial(find_uneven_classes, every, prints),
        partial(find_cut_answers, counts or {}),
        partial(find_empty_answers, sample),
        partial(find_short_answers, sample),
        partial(find_repeated_answers, sample),
        partial(find_unknown_tokens, sample, tokenizer),
        partial(find_odd_scripts, sample),
        partial(find_lookalikes, sample),
        partial(find_email_addresses, sample),
        partial(find_phone_numbers, sample),
        partial(find_bank_numbers, sample),
    ]
    if thorough:
        checks.append(partial(find_odd_languages, sample))
    findings, notes = _run(checks)
    if not thorough:
        is_all = len(sample) == len(training) and len(held_out_sample) == len(held_out)
        more = "languages, too" if is_all else "more rows, and at their languages"
        notes.append(f"`peftkit preview RECIPE --lint` looks at {more}")
    looked_at = _looked_at("training", training, sample, thorough)
    if held_out:
        looked_at += " and " + _looked_at("held-out", held_out, held_out_sample, thorough)
    return LintReport(tuple(findings), looked_at, tuple(notes))


def _run(checks: Sequence[Callable[[], list[Finding]]]) -> tuple[list[Finding], list[str]]:
    """Return what all checks found, and why some could not be made."""
    findings, notes = [], []
    for check in checks:
        try:
            findings += check()
        except NotDoneError as reason:
            notes.append(str(reason))
    return findings, notes


def _sample(items: Sequence[LintItem], limit: int) -> list[LintItem]:
    """Return rows that are evenly spread: at most `limit`, and fewer if they are long."""
    probed = [items[number] for number in spread(len(items), _PROBED)]
    characters = sum(len(item.content) for item in probed)
    longest = max(1, _CHARACTERS * len(probed) // max(1, characters))
    return [items[number] for number in spread(len(items), min(limit, longest))]


def _looked_at(
    name: str, items: Sequence[LintItem], sample: Sequence[LintItem], thorough: bool
) -> str:
    if len(sample) == len(items):
        return f"{len(items):,} {name} rows"
    if thorough:
        return f"{len(items):,} {name} rows ({len(sample):,} of them closely)"
    return f"{len(sample):,} of {len(items):,} {name} rows"


def _lines(finding: Finding, width: int) -> list[str]:
    """Return a finding in one line, or more if it is long, and its rows in the next one."""
    indent = " " * (width + 1)
    lines = textwrap.wrap(
        f"{finding.what}: {finding.advice}",
        _WIDTH,
        initial_indent=f"{finding.count:{width},} ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if finding.rows:
        lines.append(indent + _listed(finding))
    return lines


def _listed(finding: Finding) -> str:
    """Return the places of rows; the file is named once for neighbours from it."""
    parts: list[str] = []
    last = None
    for where in finding.rows:
        file, _, row = where.partition(", row ")
        parts.append(f"row {row}" if file == last else where)
        last = file
    if finding.count > len(parts):
        parts.append("...")
    return "; ".join(parts)
