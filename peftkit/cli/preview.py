"""`peftkit preview`: show what a model will learn from."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.cli.arguments import check_output, positive

if TYPE_CHECKING:
    from peftkit.data.lint.linting import LintReport
    from peftkit.data.preview.contents import Preview

_DESCRIPTION = """\
Show rows as a recipe will train on them: which tokens are learned, which are only read, and which
are cut; how long examples are; and what became of the rows.

The rows are chosen as in `peftkit train`: by --config and by any --KEY VALUE of the recipe, which
`peftkit train RECIPE --help` lists. They come after RECIPE.
"""
_COUNT, _COUNT_IN_PAGE = 3, 20


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    preview = commands.add_parser(
        "preview",
        help="show what a model will learn from, token by token",
        usage="peftkit preview RECIPE [--count N] [--html FILE] [--all] [--lint] "
        "[--config FILE] [--KEY VALUE ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    preview.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or its file")
    preview.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help=f"examples to show (default: {_COUNT}; {_COUNT_IN_PAGE} with --html)",
    )
    preview.add_argument("--html", metavar="FILE", help="write a page that a browser shows")
    preview.add_argument(
        "--all", action="store_true", help="take all rows; without it, 1,000 that are evenly spread"
    )
    preview.add_argument(
        "--lint",
        action="store_true",
        help="look for duplicates, overlap, odd labels and answers, and personal data, too",
    )
    preview.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.config.reading import read
    from peftkit.data.preview.terminal import in_terminal
    from peftkit.runs.data_preview import preview_rows, write_page
    from peftkit.runs.recipe import WITHOUT_CONFIG
    from peftkit.runs.recipes import load_recipe, recipe_named
    from peftkit.runs.training_rows import read_training_rows

    check_output(options.html)
    recipe = load_recipe(recipe_named(options.recipe))
    config = read(recipe.Config, options.passed_on, WITHOUT_CONFIG)
    task = recipe.make_task(config)
    rows = read_training_rows(task, config)
    preview = preview_rows(
        task,
        config,
        rows,
        f"{Path(options.recipe).stem}: {config.model.source} on {config.data.train}",
        count=options.count or (_COUNT_IN_PAGE if options.html else _COUNT),
        takes_all=options.all,
    )
    if options.html is None:
        print(in_terminal(preview, color=sys.stdout.isatty()))
    if options.lint:
        preview = _add_findings(preview, task.lint(rows.distinct, rows.held_out))
    if options.html is not None:
        write_page(preview, Path(options.html))
        print(f"the page is in {options.html}")
    if not preview.statistics.is_of_all:
        print("these are figures of a sample; --all takes all rows")
    return 0


def _add_findings(preview: "Preview", found: "LintReport") -> "Preview":
    """Print what the lint found, and return the preview with it among the warnings."""
    print(f"\n{found}")
    sentences = [f"Lint: {finding.sentence}." for finding in found.findings]
    return dataclasses.replace(preview, warnings=(*preview.warnings, *sentences))
