"""Read a config: a YAML file, changed by the command line, and every mistake reported at once."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from peftkit.config.keys import Key, keys
from peftkit.config.mistakes import explain
from peftkit.config.shipped import config_file
from peftkit.errors import ConfigError

T = TypeVar("T")


def read(kind: type[T], words: Sequence[str], without_config: Mapping[str, Any] | None = None) -> T:
    """Return the config that a command line asks for.

    Args:
        kind: A class made by `peftkit.config.keys.section`.
        words: The command line: ``--config FILE``, and ``--key VALUE`` for keys to change.
        without_config: The values to start from where the command line names no file.

    Raises:
        ConfigError: names every unknown key, wrong type and impossible combination.
    """
    options = _options(words)
    values = _copy(without_config or {})
    origin = "the command line"
    for name, texts in options:
        if name == "config":
            path = config_file(_single(name, texts))
            values, origin = load_yaml(path), str(path)
    for name, texts in options:
        if name != "config":
            _change(kind, values, name, texts)
    return build(kind, values, origin)


def build(kind: type[T], values: dict[str, Any], origin: str) -> T:
    """Return the config that a tree of plain values describes; errors name it by its `origin`.

    Raises:
        ConfigError: names every unknown key, wrong type and impossible combination.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as invalid:
        lines = explain(kind, invalid)
        count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
        raise ConfigError("\n  ".join([f"{origin}: {count}", *lines])) from None


def to_yaml(config: object) -> str:
    """Return a config as YAML that `read` accepts, with every default filled in."""
    values = TypeAdapter(type(config)).dump_python(config, mode="json")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping at its top.

    Raises:
        ConfigError: the file is missing, or holds something else.
    """
    try:
        values = _parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"cannot read the config {path}: {problem}") from problem
    if not isinstance(values, dict):
        raise ConfigError(
            f"the config {path} must hold keys and values, not {type(values).__name__}"
        )
    return values


# The command line


def _options(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the options of a command line, each with the words up to the next option."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            found.append((name, [text] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise ConfigError(
                f"{word!r} is not an option; options are --config FILE and --section.key VALUE"
            )
    return found


def _change(kind: type, values: dict[str, Any], given_name: str, texts: list[str]) -> None:
    """Set one key to what the command line gives for it."""
    name = given_name.replace("-", "_")
    known = [key for key in keys(kind) if key.name == name]
    if known and known[0].sections:
        _change_section(kind, values, known[0], texts)
        return
    if known:
        _set(values, name, _value(known, texts))
        return
    for key in keys(kind):
        if key.takes(dict) and name.startswith(f"{key.name}."):
            # A name inside a mapping, such as a column, is not ours: it keeps its hyphens.
            name = key.name + given_name[len(key.name) :]
            if not texts:
                raise ConfigError(f"--{given_name} needs a value")
    _set(values, name, _yaml_values(texts))  # if the key is unknown, `build` says so


def _change_section(kind: type, values: dict[str, Any], section: Key, texts: list[str]) -> None:
    """Replace a whole section by keys and values, or set its main key."""
    given = _yaml_values(texts)
    if given is None or isinstance(given, dict):
        if not texts:
            raise ConfigError(f"--{section.name} needs a value")
        _set(values, section.name, given)
    elif section.main_key is not None:
        main = [key for key in keys(kind) if key.name == section.main_key]
        _set(values, section.main_key, _value(main, texts))
    else:
        raise ConfigError(
            f"--{section.name} takes keys and values, such as '{{key: value}}', not {texts[0]!r}"
        )


def _value(known: Sequence[Key], texts: list[str]) -> Any:
    """Return the value of a key for the words after it.

    Args:
        known: The key; it is there several times where several methods have it.
        texts: The words.
    """
    name = known[0].name
    takes_list = any(key.takes(list) for key in known)
    if not texts and any(key.takes(bool) for key in known):
        return True
    if len(texts) > 1 and takes_list:
        return [_typed(text, [str]) for text in texts]
    types: list[Any] = []
    choices: list[Any] = []
    for key in known:
        types += key.types
        choices += key.choices
    value = _typed(_single(name, texts), types)
    is_one_item = isinstance(value, str) and value not in choices and str not in types
    return [value] if takes_list and is_one_item else value


def _single(name: str, texts: Sequence[str]) -> str:
    if not texts:
        raise ConfigError(f"--{name} needs a value")
    if len(texts) > 1:
        raise ConfigError(f"--{name} takes one value, not {len(texts)}: {' '.join(texts)}")
    return texts[0]


def _typed(text: str, types: Sequence[Any]) -> Any:
    """Return a word as YAML reads it, or as it is for a key that takes text and no numbers."""
    value = _parsed_word(text)
    takes_numbers = int in types or float in types
    if str in types and not takes_numbers and isinstance(value, bool | int | float | datetime.date):
        return text
    return value


def _yaml_values(texts: Sequence[str]) -> Any:
    """Return the words after a key of unknown type: no value, one, or a list."""
    values = [_parsed_word(text) for text in texts]
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted key in a tree of values; what stands in the way of a section gives way."""
    *parents, last = name.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            values[parent] = child = {}
        values = child
    values[last] = value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a tree of values."""
    copied = dict(values)
    for key, value in copied.items():
        if isinstance(value, Mapping):
            copied[key] = _copy(value)
    return copied


# YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two rules of YAML 1.2: ``1e-4`` is a number, and ``no`` is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _parsed_word(text: str) -> Any:
    try:
        return _parse(text)
    except yaml.YAMLError:
        return text
