"""What is wrong with a config: pydantic's errors as one line for each key."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from peftkit.config.keys import keys, method_of
from peftkit.errors import nearest

# How pydantic names the members of a union in the path of an error, where no key has this name.
_UNION_MEMBER = re.compile(
    r"(str|int|float|bool|constrained-\w+|(literal|list|dict)\[.*\]|function-.*)$"
)


def explain(kind: type, invalid: ValidationError) -> list[str]:
    """Return one line for each key that is wrong: its name, what is wrong, and the nearest key."""
    reasons: dict[str, list[str]] = {}
    of_other_methods: dict[tuple[str, str], list[str]] = {}
    for error in invalid.errors():
        place, sections = _locate(kind, [str(part) for part in error["loc"]])
        name = ".".join(place)
        is_unknown = error["type"] == "unexpected_keyword_argument"
        owners = _owners(kind, name) if is_unknown else []
        if owners:
            where = (".".join(place[:-1]), str(method_of(sections[0])))
            of_other_methods.setdefault(where, []).append(f"{place[-1]} ({', '.join(owners)})")
            continue
        reason = _unknown_key(kind, place, sections) if is_unknown else _wrong_value(error)
        found = reasons.setdefault(name or "config", [])
        if reason not in found:  # each member of a union has an error of its own
            found.append(reason)
    lines = [f"{name}: {'; or '.join(found)}" for name, found in reasons.items()]
    for (section, method), names in of_other_methods.items():
        lines.append(
            f"{section}: method {method} does not have {', '.join(names)}; remove what belongs to "
            f"another method, or replace the section: --{section} '{{method: {method}}}'"
        )
    return lines


def _locate(kind: type, location: Sequence[str]) -> tuple[list[str], list[type]]:
    """Return the key that pydantic's path leads to, and the sections that may hold that key.

    Pydantic's path also names the members of unions; these parts are left out. The name of a method
    among them says which section of several is meant.
    """
    place: list[str] = []
    sections, inside = [kind], [kind]
    for number, part in enumerate(location):
        chosen = [cls for cls in inside if method_of(cls) == part]
        if chosen:
            inside = chosen
            sections = chosen
            continue
        if _UNION_MEMBER.match(part):
            continue
        is_last = number == len(location) - 1
        if is_last or not inside or part in _names(inside):
            place.append(part)
            sections = inside
            inside = _sections_at(kind, ".".join(place))
    return place, sections


def _names(sections: Sequence[type]) -> list[str]:
    """Return the names of the keys of one section, which may be one of several classes."""
    found: dict[str, None] = {}
    for cls in sections:
        for field in dataclasses.fields(cls):
            found[field.name] = None
    return list(found)


def _sections_at(kind: type, name: str) -> list[type]:
    for key in keys(kind):
        if key.name == name:
            return list(key.sections)
    return []


def _owners(kind: type, name: str) -> list[str]:
    """Return the methods that have a key."""
    return [key.method for key in keys(kind) if key.name == name and key.method is not None]


def _unknown_key(kind: type, place: Sequence[str], sections: Sequence[type]) -> str:
    *parents, last = place
    positive = ".".join([*parents, last.removeprefix("no_")])
    for key in keys(kind):
        if last.startswith("no_") and key.name == positive and key.takes(bool):
            return f"unknown key; write --{positive} false"
    return f"unknown key{nearest(last, _names(sections))}"


def _wrong_value(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    starts_with_a_name = not message.split()[0][1:].islower()
    if not starts_with_a_name:
        message = message[0].lower() + message[1:]
    names_the_value = error["type"] in ("value_error", "missing")
    if names_the_value or isinstance(error.get("input"), dict):
        return message
    return f"{message} (got {error['input']!r})"
