"""`peftkit sweep`: search for the settings that train best."""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from peftkit.cli.arguments import positive

_NAMES = ("metric", "direction", "sampler", "pruner", "trials", "timeout", "seed")


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    sweep = commands.add_parser(
        "sweep",
        help="search for the settings that train best",
        usage="peftkit sweep RECIPE --config FILE --space FILE --output DIR [options] "
        "[-- ACCELERATE OPTIONS]",
        description="Run a recipe with many settings, which Optuna chooses. The same command "
        "resumes an interrupted search.",
    )
    sweep.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or its file")
    sweep.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the config that the trials change: a file, or a name such as text_pair/quick",
    )
    sweep.add_argument(
        "--space",
        required=True,
        metavar="FILE",
        help="YAML of what to try: `train.learning_rate: {low: 1e-4, high: 1e-2, log: true}`, "
        "`adapter.r: [4, 8, 16]`",
    )
    sweep.add_argument(
        "--output", required=True, metavar="DIR", help="takes the report, best.yaml, and the trials"
    )
    _add_search_options(sweep)
    sweep.set_defaults(run=_run)


def _add_search_options(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument(
        "--trials",
        type=positive,
        metavar="N",
        help="trials in all, with those before an interruption (default: 20, or the whole grid)",
    )
    sweep.add_argument(
        "--sampler",
        choices=("tpe", "random", "grid"),
        default="tpe",
        help="how to choose settings (default: tpe)",
    )
    sweep.add_argument(
        "--metric",
        default="loss",
        help="the metric on held-out rows to improve, one in after.json (default: loss)",
    )
    sweep.add_argument(
        "--direction",
        choices=("maximize", "minimize"),
        help="which way is better (default: known from the metric's name)",
    )
    sweep.add_argument(
        "--pruner",
        choices=("none", "median", "halving"),
        default="none",
        help="stop trials whose evaluations fall behind the others (default: none)",
    )
    sweep.add_argument(
        "--timeout", type=float, metavar="MINUTES", help="start no trial after this time"
    )
    sweep.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the choices (default: 0)"
    )


def _run(options: argparse.Namespace) -> int:
    from peftkit.config.shipped import config_file
    from peftkit.runs.launch_command import launch_command
    from peftkit.runs.recipes import load_recipe, recipe_named
    from peftkit.runs.sweep.search import SweepSettings, sweep

    # These signals would end this process and leave the trial running.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    script = recipe_named(options.recipe).resolve()
    command = launch_command(options.passed_on, str(script), [])
    settings = SweepSettings(**{name: getattr(options, name) for name in _NAMES})
    base, space, output = config_file(options.config), Path(options.space), Path(options.output)
    kind = load_recipe(script).Config
    try:
        report = sweep(command, kind, base, space, output, settings)
    except KeyboardInterrupt:
        again = shlex.join(["peftkit", "sweep", *options.words])
        print(f"interrupted; to resume: {again}", file=sys.stderr)
        return 130  # 128 plus the number of SIGINT
    best = report.parent / "best.yaml"
    print(f"the report is {report}")
    print(f"to train with the best settings: peftkit train {options.recipe} --config {best}")
    return 0
