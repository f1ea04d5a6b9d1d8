"""`peftkit sweep`: search for the settings that train best."""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    sweep = commands.add_parser(
        "sweep",
        help="search for the settings that train best",
        usage="peftkit sweep RECIPE --config FILE --space FILE --output DIR [options] [-- ACCELERATE OPTIONS]",
        description="Run a recipe with many settings, chosen by Optuna. The same command goes on with an interrupted search.",
    )
    sweep.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or its file")
    sweep.add_argument(
        "--config", required=True, metavar="FILE", help="the config that the trials change"
    )
    sweep.add_argument(
        "--space",
        required=True,
        metavar="FILE",
        help="YAML of what to try: `train.learning_rate: {low: 1e-4, high: 1e-2, log: true}`, `adapter.r: [4, 8, 16]`",
    )
    sweep.add_argument(
        "--output", required=True, metavar="DIR", help="takes the report, best.yaml, and the trials"
    )
    sweep.add_argument(
        "--trials",
        type=int,
        help="how many in all, with those of an interrupted search (default: 20; of a grid, every point)",
    )
    sweep.add_argument(
        "--sampler",
        choices=("tpe", "random", "grid"),
        default="tpe",
        help="how to choose (default: tpe)",
    )
    sweep.add_argument(
        "--metric", default="loss", help="a metric of after.json, on held-out rows (default: loss)"
    )
    sweep.add_argument(
        "--direction", choices=("maximize", "minimize"), help="default: by the metric's name"
    )
    sweep.add_argument(
        "--pruner",
        choices=("none", "median", "halving"),
        default="none",
        help="stop a trial whose evaluations fall behind those of others (default: none)",
    )
    sweep.add_argument(
        "--timeout", type=float, metavar="MINUTES", help="begin no trial after this time"
    )
    sweep.add_argument(
        "--seed", type=int, default=0, help="of the choice of the settings (default: 0)"
    )
    sweep.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.runs.recipes import load_recipe, recipe_named
    from peftkit.runs.sweep.search import SweepSettings, sweep

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # which would leave the trial running behind
            signal.signal(getattr(signal, name), signal.default_int_handler)
    script = recipe_named(options.recipe).resolve()
    accelerate = options.words[options.words.index("--") + 1 :] if "--" in options.words else []
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--quiet",
        *accelerate,
        str(script),
    ]
    names = ("metric", "direction", "sampler", "pruner", "trials", "timeout", "seed")
    settings = SweepSettings(**{name: getattr(options, name) for name in names})
    kind = load_recipe(script).Config
    try:
        report = sweep(
            command, kind, Path(options.config), Path(options.space), Path(options.output), settings
        )
    except KeyboardInterrupt:
        print(
            f"interrupted; to go on: {shlex.join(['peftkit', 'sweep', *options.words])}",
            file=sys.stderr,
        )
        return 130
    print(f"the report is {report}; to train with the best settings: peftkit train {options.recipe} --config "
          f"{report.parent / 'best.yaml'}")  # fmt: skip
    return 0
