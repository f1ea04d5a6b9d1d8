"""The `peftkit` command: one file for each verb. Imports are lazy, so `--help` answers at once."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import peftkit
from peftkit.cli import (
    combine,
    compare,
    evaluate,
    generate,
    inspect,
    merge,
    predict,
    preview,
    sweep,
    train,
)
from peftkit.errors import PeftkitError, nearest
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes

_VERBS = (train, evaluate, predict, generate, compare, sweep, preview, inspect, merge, combine)
_HELP = (["-h"], ["--help"])


class _VerbParser(argparse.ArgumentParser):
    """The parser of one verb; it takes options as `--help` spells them, and no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after a mistake that the user has to correct.

    `peftkit train` returns what `accelerate launch` returns: 1 for every failure of the recipe once
    it has started. A recipe that is run by itself ends with 2 after a mistake, and after an
    interruption with 128 plus the number of the signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    names = [verb.__name__.rpartition(".")[2] for verb in _VERBS]
    if words and not words[0].startswith("-") and words[0] not in names:
        hint = nearest(words[0], names)
        print(f"peftkit: there is no command {words[0]!r}{hint}", file=sys.stderr)
        print(f"commands are {', '.join(names)}; see peftkit --help", file=sys.stderr)
        return 2
    options = _parse(words)
    try:
        with quiet_bitsandbytes():
            code: int = options.run(options)
    except PeftkitError as problem:
        print(f"peftkit {options.command}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"peftkit {options.command}: interrupted", file=sys.stderr)
        return 130  # 128 plus the number of SIGINT
    return code


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="peftkit",
        description="Parameter-efficient tuning for people with one small GPU.",
        allow_abbrev=False,
    )
    version = f"peftkit {peftkit.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_VerbParser
    )
    for verb in _VERBS:
        verb.add_to(commands)
    return parser


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse a command line; words that are meant for others are left as they are.

    ``options.words`` are all words after the verb. ``options.passed_on`` are those for the recipe,
    or in `peftkit sweep` those for Accelerate.
    """
    parser = command_parser()
    verb, rest = words[:1], words[1:]
    passed_on: list[str] = []
    if verb == ["train"] and rest[:1] not in _HELP:
        options = parser.parse_args(verb)
        passed_on = rest
    elif verb == ["preview"]:
        options, passed_on = parser.parse_known_args(words)
    elif verb == ["sweep"] and "--" in rest:
        end = words.index("--")
        options = parser.parse_args(words[:end])
        passed_on = words[end + 1 :]
    else:
        options = parser.parse_args(words)
    options.words, options.passed_on = rest, passed_on
    return options
