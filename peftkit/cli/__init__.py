"""The `peftkit` command: one file for each verb. Imports are lazy, so that `--help` answers at
once.
"""

import argparse
import sys
from collections.abc import Sequence

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
from peftkit.errors import PeftkitError
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes

_VERBS = (train, evaluate, predict, generate, compare, sweep, preview, inspect, merge, combine)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 where the user has to change something.

    `train` returns what `accelerate launch` returns, which is 1 for every failure of the recipe;
    run by itself, a recipe ends with 2 after a mistake in its config and with 128 plus the signal's
    number after an interruption.
    """
    parser = argparse.ArgumentParser(
        prog="peftkit", description="Parameter-efficient tuning for people with one small GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for verb in _VERBS:
        verb.add_to(commands)
    words = list(sys.argv[1:] if arguments is None else arguments)
    passes_words_on = words[:1] == ["train"] and words[1:2] not in (["-h"], ["--help"])
    for_accelerate = words.index("--") if words[:1] == ["sweep"] and "--" in words else len(words)
    options = parser.parse_args(words[:1] if passes_words_on else words[:for_accelerate])
    options.words = words[1:]
    try:
        with quiet_bitsandbytes():
            code: int = options.run(options)
    except PeftkitError as problem:
        print(f"peftkit {options.command}: {problem}", file=sys.stderr)
        return 2
    return code
