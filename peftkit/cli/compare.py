"""`peftkit compare`: several runs side by side."""

import argparse
import json
from typing import Any

from peftkit.cli.arguments import check_output


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    compare = commands.add_parser("compare", help="show several runs side by side, finished or not")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    compare.add_argument(
        "--output", metavar="FILE.md", help="write the tables to a file, with a picture beside it"
    )
    compare.add_argument(
        "--metric", default="loss", help="the metric that the picture shows (default: loss)"
    )
    compare.add_argument("--json", action="store_true", help="print everything as JSON instead")
    compare.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from peftkit.runs.comparison import compare, read_runs

    check_output(options.output)
    if options.output or not options.json:
        text = compare(options.runs, options.output, metric=options.metric)
    if options.json:
        text = json.dumps([asdict(run) for run in read_runs(options.runs)], indent=2)
    print(text)
    return 0
