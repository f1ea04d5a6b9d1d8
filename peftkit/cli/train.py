"""`peftkit train`: print and run `accelerate launch` for a recipe."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError, nearest
from peftkit.runs.recipes import recipes


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    train = commands.add_parser(
        "train",
        help="train with a recipe",
        usage="peftkit train [ACCELERATE OPTIONS] RECIPE --config FILE [--section.key VALUE ...]",
        description=f"Print and run `accelerate launch` for a recipe. Recipes: {', '.join(sorted(recipes()))}.",
    )
    train.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    known = recipes()
    place = next((i for i, word in enumerate(options.words) if word in known), None)
    if place is None:
        given = next((word for word in options.words if not word.startswith("-")), "")
        raise ConfigError(
            f"no recipe is named; recipes are {', '.join(sorted(known))}{nearest(given, known)}"
        )
    script = known[options.words[place]]
    shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    words = ["--quiet", *options.words[:place], str(shown), *options.words[place + 1 :]]
    print("accelerate launch", shlex.join(words), file=sys.stderr, flush=True)
    # A Ctrl-C is for the recipe alone, which saves and says how to go on: this process and
    # Accelerate's wait for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    typed = {"PEFTKIT_COMMAND": shlex.join(["peftkit", "train", *options.words])}
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return subprocess.call([*launcher, *words], env=os.environ | typed)
