"""`peftkit preview`: show what a model will learn from."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    preview = commands.add_parser(
        "preview", help="show what a model will learn from, supervised tokens marked"
    )
    preview.add_argument(
        "recipe",
        nargs="?",
        default="chat",
        help="the recipe that the config is for (default: chat)",
    )
    preview.add_argument("--config", required=True, help="the recipe's config")
    preview.add_argument("--count", type=int, default=3, help="examples to show (default: 3)")
    preview.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.config.reading import build, load_yaml
    from peftkit.runs.recipes import load_recipe, recipe_named

    recipe = load_recipe(recipe_named(options.recipe))
    config = build(recipe.Config, load_yaml(Path(options.config)), options.config)
    task = recipe.task(config)
    rows = task.read(config.data.train)
    task.fit(rows)
    print(task.preview(rows, count=options.count, color=sys.stdout.isatty()))
    return 0
