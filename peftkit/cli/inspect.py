"""`peftkit inspect`: show a model's anatomy."""

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    look = commands.add_parser(
        "inspect",
        help="show a model's anatomy and what each method would train; needs no weights",
    )
    look.add_argument(
        "model",
        metavar="MODEL",
        help="a Hub id, a directory, a .gguf file, package:NAME/FILE, or a config.json",
    )
    look.add_argument(
        "--task",
        help="the head to build, e.g. sequence-classification (default: what the config names)",
    )
    look.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.adapters.inspection import describe, empty_model

    print(describe(empty_model(options.model, options.task)))
    return 0
