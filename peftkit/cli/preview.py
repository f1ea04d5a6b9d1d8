"""`peftkit preview`: show what a model will learn from."""

import argparse
import sys
from typing import Any

from peftkit.cli.arguments import positive

_DESCRIPTION = """\
Show rows as a recipe will train on them, with the tokens that are learned marked.

The rows are chosen as in `peftkit train`: by --config and by any --KEY VALUE of the recipe, which
`peftkit train RECIPE --help` lists. They come after RECIPE.
"""


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    preview = commands.add_parser(
        "preview",
        help="show what a model will learn from, supervised tokens marked",
        usage="peftkit preview RECIPE [--count N] [--config FILE] [--KEY VALUE ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    preview.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or its file")
    preview.add_argument(
        "--count", type=positive, default=3, metavar="N", help="examples to show (default: 3)"
    )
    preview.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.config.reading import read
    from peftkit.runs.recipe import WITHOUT_CONFIG
    from peftkit.runs.recipes import load_recipe, recipe_named

    recipe = load_recipe(recipe_named(options.recipe))
    config = read(recipe.Config, options.passed_on, WITHOUT_CONFIG)
    task = recipe.make_task(config)
    rows = task.read(config.data.train)
    task.fit(rows)
    print(task.preview(rows, count=options.count, color=sys.stdout.isatty()))
    return 0
