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
        usage="peftkit combine ADAPTER[:WEIGHT] [ADAPTER[:WEIGHT] ...] --output DIR [options]",
    )
    combine.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER[:WEIGHT]",
        help="a directory and its weight, such as 0.5 or -1 (default: 1)",
    )
    combine.add_argument(
        "--output", required=True, metavar="DIR", help="the adapter directory to write"
    )
    combine.add_argument(
        "--how",
        choices=("update", "parameters"),
        default="update",
        help="update: add up exactly what LoRA adapters do to the weights; parameters: take the "
        "mean of the parameters, for any method (default: update)",
    )
    combine.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="divide the weights by their sum (default: only with --how parameters)",
    )
    combine.add_argument(
        "--any-backbone",
        action="store_true",
        help="do not check that the adapters were trained on the same backbone",
    )
    combine.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.adapters.combining import combine

    adapters: dict[str | Path, float] = {}
    for word in options.adapters:
        path, weight = _path_and_weight(word)
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
    terms = [f"{weight:g} x {path}" for path, weight in adapters.items()]
    print(f"{options.output}: {' + '.join(terms)}")
    return 0


def _path_and_weight(word: str) -> tuple[str, float]:
    """Split ``PATH`` or ``PATH:WEIGHT``; a colon without a number after it belongs to the path."""
    path, colon, text = word.rpartition(":")
    if not colon:
        return word, 1.0
    try:
        return path, float(text)
    except ValueError:
        return word, 1.0
