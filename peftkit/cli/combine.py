"""`peftkit combine`: add up or average adapters."""

import argparse
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    combine = commands.add_parser(
        "combine",
        help="add up or average adapters of one backbone, which is not loaded",
        usage="peftkit combine OUT ADAPTER[:WEIGHT] [ADAPTER[:WEIGHT] ...] [options]",
    )
    combine.add_argument("output", metavar="OUT", help="the adapter directory to write")
    combine.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER[:WEIGHT]",
        help="a directory and its weight, such as 0.5 or -1 (default: 1)",
    )
    combine.add_argument(
        "--how",
        choices=("update", "parameters"),
        default="update",
        help="add up what LoRA adapters do to the weights, exactly, or take the mean of the parameters of any method",
    )
    combine.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="divide the weights by their sum (default: with --how parameters only)",
    )
    combine.add_argument(
        "--any-backbone",
        action="store_true",
        help="do not compare the backbones that the adapters were trained on",
    )
    combine.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.adapters.combining import combine

    adapters: dict[str | Path, float] = {}
    for word in options.adapters:
        path, weight = _parsed(word)
        if path in adapters:
            raise ConfigError(f"{path} is named twice; give it the sum of its weights")
        adapters[path] = weight
    combine(
        adapters,
        options.output,
        how=options.how,
        normalize=options.normalize,
        verify_backbone=not options.any_backbone,
    )
    print(
        f"{options.output}: {' + '.join(f'{weight:g} x {path}' for path, weight in adapters.items())}"
    )
    return 0


def _parsed(word: str) -> tuple[str, float]:
    """Return path and weight of ``PATH`` or ``PATH:WEIGHT``; a colon that no number follows belongs
    to the path.
    """
    path, colon, text = word.rpartition(":")
    try:
        return (path, float(text)) if colon else (word, 1.0)
    except ValueError:
        return word, 1.0
