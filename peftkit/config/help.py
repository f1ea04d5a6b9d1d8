"""What `--help` shows of a config: every key that the reader accepts, from the same table."""

import dataclasses
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Mapping
from typing import Any, Literal

from peftkit.config.keys import Key, keys, members

_WIDTH = 100
_HOW_TO_WRITE = """\
--config FILE is a YAML file, or the name of a config that ships with peftkit, such as
chat/quickstart. Each --KEY VALUE changes one of its keys. VALUE is written as in YAML:

  --train.epochs 3, --train.epochs=3     a number; - and _ are the same in KEY
  --merge, --merge true, --merge false   a switch
  --data.train a.jsonl b.jsonl           a list, or '[a.jsonl, b.jsonl]'
  --data.evaluation null                 no value, where null is allowed
  --data.columns.text review             one entry of a mapping, or '{text: review}' for all of it
  --adapter '{method: prefix}'           a whole section, in place of the one in the config
"""
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def help_text(kind: type, program: str, without_config: Mapping[str, Any] | None = None) -> str:
    """Return the help for a program whose command line is a config.

    Args:
        kind: A class made by `peftkit.config.keys.section`.
        program: How the program is called.
        without_config: The values that it starts from where no config is named.
    """
    about = sys.modules[kind.__module__].__doc__ or kind.__doc__ or ""
    lines = [f"usage: {program} [--config FILE] [--KEY VALUE ...]", "", inspect.cleandoc(about), ""]
    lines += [_HOW_TO_WRITE]
    if without_config:
        options = " ".join(_as_options(without_config))
        lines += [*_wrapped(f"Without --config, these come first: {options}", indent=0), ""]
    lines += ["  -h, --help", "      Show this text.", "  --config FILE", "      The config."]
    method = None
    for key in keys(kind):
        if key.sections:
            lines += _section_lines(key)
            continue
        if key.method not in (None, method):
            lines += ["", f"with --adapter.method {key.method}:"]
        method = key.method
        lines += _key_lines(key)
    return "\n".join(lines) + "\n"


def value_format(key: Key) -> str:
    """Return what the help shows for the value of a key, such as ``TEXT|null``."""
    shown: list[str] = []
    for member in key.types:
        form = _type_format(member)
        if form not in shown:
            shown.append(form)
    if "TEXT" in shown and "TEXT [TEXT ...]" in shown:
        shown.remove("TEXT")
    if key.takes(bool):
        shown[0] = f"[{shown[0]}" if len(shown) > 1 else f"[{shown[0]}]"
        shown[-1] = f"{shown[-1]}]" if len(shown) > 1 else shown[-1]
    return "|".join(shown)


def _type_format(member: Any) -> str:
    plain = {
        bool: "true|false",
        int: "INT",
        float: "NUMBER",
        str: "TEXT",
        None: "null",
        Any: "VALUE",
    }
    if member in plain:
        return plain[member]
    arguments = typing.get_args(member)
    origin = typing.get_origin(member)
    if origin is Literal:
        return "|".join(map(_spelled, arguments))
    if origin is dict:
        return f"'{{NAME: {_item_format(arguments[1])}, ...}}'"
    item = _item_format(arguments[0])
    return f"{item} [{item} ...]"


def _item_format(hint: Any) -> str:
    return "|".join(map(_type_format, members(hint)))


def _section_lines(key: Key) -> list[str]:
    """Return the heading of a section, and the short form that sets its main key."""
    default = " (default: null)" if key.default is None else ""
    lines = ["", *_wrapped(f"{key.name}: {key.about}{default}", indent=0)]
    if key.main_key is not None:
        lines += [f"  --{key.name} VALUE", f"      Short for --{key.main_key} VALUE."]
    return lines


def _key_lines(key: Key) -> list[str]:
    """Return a key with the form of its value, and below it what it means."""
    remarks = _bounds(key.hint)
    is_required = key.default is dataclasses.MISSING
    remarks.append("required" if is_required else f"default: {_spelled(key.default)}")
    about = f"{key.about} ({'; '.join(remarks)})"
    return [f"  --{key.name} {value_format(key)}", *_wrapped(about, indent=6)]


def _bounds(hint: Any) -> list[str]:
    """Return the bounds in a type, such as ``above 0, below 1``."""
    found: list[str] = []
    if typing.get_origin(hint) is typing.Annotated:
        bounds: list[str] = []
        for entry in typing.get_args(hint)[1:]:
            for bound in getattr(entry, "metadata", [entry]):
                for name, words in _BOUNDS.items():
                    if hasattr(bound, name):
                        bounds.append(f"{words} {getattr(bound, name)}")
        found += [", ".join(bounds)] if bounds else []
    for part in typing.get_args(hint):
        found += _bounds(part)
    return found


def _as_options(values: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """Return a tree of values as options of a command line."""
    found: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _as_options(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name} {_spelled(value)}")
    return found


def _spelled(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _wrapped(text: str, indent: int) -> list[str]:
    margin = " " * indent
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(
        text, _WIDTH - 2, initial_indent=margin, subsequent_indent=margin, **options
    )
