"""`peftkit train`: print and run `accelerate launch` for a recipe."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError, nearest
from peftkit.runs.launch_command import TYPED_COMMAND, launch_command
from peftkit.runs.recipes import load_recipe, recipes

_DESCRIPTION = """\
Print and run `accelerate launch` for a recipe.

  peftkit train chat --config chat/quickstart
  peftkit train chat --model Qwen/Qwen3-1.7B --data dialogues.jsonl
  peftkit train --config_file ddp chat --config my.yaml

`peftkit train RECIPE --help` lists every key of the recipe. What stands before RECIPE goes to
`accelerate launch`; --config_file also takes the name of a preset: {presets}.

Recipes: {recipes}
"""
_PRESETS = "cpu, single_gpu, ddp, fsdp2_qlora"


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    names = ", ".join(sorted(recipes()))
    train = commands.add_parser(
        "train",
        help="train with a recipe",
        usage="peftkit train [ACCELERATE OPTIONS] RECIPE [--config FILE] [--KEY VALUE ...]",
        description=_DESCRIPTION.format(presets=_PRESETS, recipes=names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.runs.frozen_config import describe_finished
    from peftkit.runs.recipe import parse, with_run_dir

    launch_options, recipe, words = _split_at_recipe(options.passed_on)
    script = recipes()[recipe]
    # Mistakes are found here, before Accelerate starts. So is --help, which therefore is quick.
    config = parse(load_recipe(script).Config, words, f"peftkit train {recipe}")
    finished = describe_finished(with_run_dir(config, script.stem))
    if finished is not None:
        print(finished, file=sys.stderr)
        return 0
    is_below = script.is_relative_to(Path.cwd())
    shown = script.relative_to(Path.cwd()) if is_below else script
    command = launch_command(launch_options, str(shown), words)
    print("accelerate launch", shlex.join(command[3:]), file=sys.stderr, flush=True)
    # A Ctrl-C is for the recipe alone, which saves and says how to go on: this process and
    # Accelerate's wait for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    typed = {TYPED_COMMAND: shlex.join(["peftkit", "train", *options.words])}
    return subprocess.call(command, env=os.environ | typed)


def _split_at_recipe(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Return the words before the recipe's name, the name, and the words after it.

    Raises:
        ConfigError: no word is the name of a recipe.
    """
    known = recipes()
    for place, word in enumerate(words):
        if word in known:
            return list(words[:place]), word, list(words[place + 1 :])
    hint = ""
    for word in words:
        if not word.startswith("-"):
            hint = nearest(word, known)
            break
    raise ConfigError(f"no recipe is named; recipes are {', '.join(sorted(known))}{hint}")
