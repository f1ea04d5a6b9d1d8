"""Configs: dataclasses filled from a YAML file and dotted command-line overrides, with every error
told at once.
"""

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic.dataclasses
import yaml
from pydantic import TypeAdapter, ValidationError

from peftkit.errors import ConfigError, nearest

T = TypeVar("T")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class one section of a config: a frozen dataclass that checks its values and refuses
    keys it does not know.
    """
    settings = {"extra": "forbid", "allow_inf_nan": False}
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=settings)(cls)  # type: ignore[call-overload]
    checked: type[T] = made
    return checked


def parse(kind: type[T], arguments: Sequence[str] | None = None) -> T:
    """Return the config that the command line asks for, or end the program: 0 after --help, 2 with
    all that is wrong.

    ``--config FILE`` names a YAML file; ``--a.b VALUE`` or ``--a.b=VALUE`` sets one key, with VALUE
    read as YAML.

    Args:
        kind: A class made by `section`.
        arguments: The command line; None is this program's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        import tyro  # only here: it is slow to import

        tyro.cli(kind, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
    try:
        return read(kind, words)
    except ConfigError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(2) from None


def read(kind: type[T], words: Sequence[str]) -> T:
    """Return the config for a command line.

    Raises:
        ConfigError: names every unknown key, wrong type and impossible combination.
    """
    path, overrides = _split(words)
    values = load_yaml(path) if path is not None else {}
    for key, value in overrides:
        _set(values, key.split("."), value)
    return build(kind, values, str(path) if path else "the command line")


def build(kind: type[T], values: dict[str, Any], origin: str) -> T:
    """Return the config that a tree of plain values describes; `origin` names it in errors.

    Raises:
        ConfigError: names every unknown key, wrong type and impossible combination.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as invalid:
        reasons: dict[str, dict[str, None]] = {}  # the members of a union each have their own
        for error in invalid.errors():
            place, reason = _explain(kind, error)
            reasons.setdefault(place, {})[reason] = None
        lines = [f"{place}: {'; or '.join(each)}" for place, each in reasons.items()]
        raise ConfigError(
            "\n".join([f"{origin}: {len(lines)} error(s)", *(f"  {line}" for line in lines)])
        ) from None


def to_yaml(config: object) -> str:
    """Return a config as YAML that `read` accepts, with every default filled in."""
    return yaml.safe_dump(
        TypeAdapter(type(config)).dump_python(config, mode="json"),
        sort_keys=False,
        allow_unicode=True,
    )


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top is a mapping. Numbers such as ``1e-4`` are numbers.

    Raises:
        ConfigError: the file is missing, or not such a mapping.
    """
    try:
        values = _load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"cannot read the config {path}: {problem}") from problem
    if not isinstance(values, dict):
        raise ConfigError(
            f"the config {path} must hold keys and values, not {type(values).__name__}"
        )
    return values


def _split(words: Sequence[str]) -> tuple[Path | None, list[tuple[str, Any]]]:
    """Separate ``--config FILE`` from the overrides."""
    path, overrides = None, []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(
                f"{word!r} is not an option; options are --config FILE and --section.key VALUE"
            )
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"--{key} needs a value")
            text = rest.pop(0)
        if key == "config":
            path = Path(text)
        else:
            overrides.append((key.replace("-", "_"), _value(text)))
    return path, overrides


_UNION_MEMBER = re.compile(
    r"(str|int|float|bool|constrained-\w+|(literal|list|dict)\[.*\]|function-.*)$"
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that ``1e-4`` is a number, as in YAML 1.2, and not a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _value(text: str) -> Any:
    try:
        return _load(text)
    except yaml.YAMLError:
        return text


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            values[key] = child = {}
        values = child
    values[last] = value


def _explain(kind: type, error: Any) -> tuple[str, str]:
    """Return the dotted key of one of pydantic's errors, and what is wrong, with the nearest right
    key.
    """
    place = _without_tags(kind, [str(part) for part in error["loc"]])
    dotted = ".".join(place)
    if error["type"] == "unexpected_keyword_argument":
        return dotted, f"unknown key{nearest(place[-1], _keys(kind, place[:-1]))}"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = (
        ""
        if isinstance(error.get("input"), dict) or error["type"] == "missing"
        else f" (got {error['input']!r})"
    )
    if error["type"] in ("value_error", "missing"):
        given = ""
    is_name = not message.split()[0][1:].islower()
    return (
        dotted or "config",
        f"{message[0] if is_name else message[0].lower()}{message[1:]}{given}",
    )


def _without_tags(kind: type, place: Sequence[str]) -> list[str]:
    """Leave out of pydantic's path what names a member of a union and no key."""
    kept: list[str] = []
    for number, part in enumerate(place):
        if _UNION_MEMBER.match(part):
            continue
        is_last = number == len(place) - 1
        if is_last or part in _keys(kind, kept) or not _is_section(kind, kept):
            kept.append(part)
    return kept


def _is_section(kind: type, place: Sequence[str]) -> bool:
    return any(dataclasses.is_dataclass(cls) for cls in _classes(kind, place))


def _keys(kind: type, place: Sequence[str]) -> list[str]:
    """Return the keys of the section at a place."""
    sections = [cls for cls in _classes(kind, place) if dataclasses.is_dataclass(cls)]
    return list(dict.fromkeys(field.name for cls in sections for field in dataclasses.fields(cls)))


def _classes(kind: type, place: Sequence[str]) -> list[type]:
    """Return what can stand at a place, every member of a union."""
    current: list[type] = [kind]
    for part in place:
        hints = [
            typing.get_type_hints(cls, include_extras=True).get(part)
            for cls in current
            if dataclasses.is_dataclass(cls)
        ]
        current = [member for hint in hints if hint is not None for member in _members(hint)]
    return current


def _members(hint: Any) -> list[type]:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [hint] if isinstance(hint, type) else []
