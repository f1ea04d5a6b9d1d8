"""Labels that are rare, uneven, or spelled in two ways."""

from collections.abc import Sequence

from peftkit.data.class_names import find_variants
from peftkit.data.lint.fingerprints import Fingerprints
from peftkit.data.lint.items import Finding, LintItem, either, shown

_UNEVEN = 20  # times as many rows as another label
_LISTED = 5  # labels that are named


def find_single_labels(items: Sequence[LintItem], prints: Fingerprints) -> list[Finding]:
    """Find labels that only one row has."""
    single = [label for label, count in prints.counts.items() if count == 1]
    if not single:
        return []
    has = either(len(single), "label has", "labels have")
    return [
        Finding(
            "labels with one row",
            len(single),
            f"{has} only one row ({_listed(list(map(repr, single)))})",
            "add rows, or merge the label with another",
            shown(items, [prints.first[label] for label in single]),
        )
    ]


def find_uneven_classes(items: Sequence[LintItem], prints: Fingerprints) -> list[Finding]:
    """Find labels that another has 20 times as many rows as."""
    if not prints.are_labelled:
        return []
    most, rows = prints.counts.most_common(1)[0]
    rare = []
    for label, count in prints.counts.items():
        if 1 < count <= rows / _UNEVEN:
            rare.append(label)
    if not rare:
        return []
    rare.sort(key=lambda label: prints.counts[label])
    shares = []
    for label in rare:
        shares.append(f"{label!r} {_percent(prints.counts[label] / len(prints.rows))}")
    has = either(len(rare), "class has", "classes have")
    return [
        Finding(
            "uneven classes",
            len(rare),
            f"{has} less than a twentieth of the rows of {most!r} ({_listed(shares)}; {most!r} "
            f"{_percent(rows / len(prints.rows))})",
            "add rows, or weigh or oversample rare classes; and look at F1, not at accuracy",
            shown(items, [prints.first[label] for label in rare]),
        )
    ]


def find_label_variants(items: Sequence[LintItem], prints: Fingerprints) -> list[Finding]:
    """Find labels that differ from another only in case or in surrounding white space."""
    others, spelled = [], []
    for label, other in find_variants(prints.counts):
        others.append(label)
        spelled.append(f"{label!r} beside {other!r}")
    if not others:
        return []
    differs = either(len(others), "label differs from another", "labels differ from others")
    return [
        Finding(
            "label variants",
            len(others),
            f"{differs} only in case or white space ({_listed(spelled)})",
            "they are classes of their own; if they mean the same, see data.label_names",
            shown(items, [prints.first[label] for label in others]),
        )
    ]


def _listed(labels: Sequence[str]) -> str:
    more = ", ..." if len(labels) > _LISTED else ""
    return ", ".join(labels[:_LISTED]) + more


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
