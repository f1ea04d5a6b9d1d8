"""`peftkit evaluate`: measure finished runs on labelled rows."""

import argparse
from pathlib import Path
from typing import Any

from peftkit.cli.arguments import check_output, positive


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    verb = commands.add_parser(
        "evaluate",
        help="measure a finished run on labelled rows, or the mean of several runs",
    )
    verb.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the directory of a run; the predictions of several are averaged (an ensemble)",
    )
    verb.add_argument(
        "--data",
        metavar="FILE",
        help="a data file, or sample:NAME/SPLIT (default: the first run's held-out rows)",
    )
    verb.add_argument(
        "--batch_size",
        type=positive,
        default=32,
        metavar="N",
        help="rows in one forward pass (default: 32)",
    )
    verb.add_argument("--output", metavar="FILE.json", help="also write the metrics to this file")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.files import write_json
    from peftkit.runs.opening import open_run
    from peftkit.runs.prediction import measure

    check_output(options.output)
    runs = [open_run(directory) for directory in options.runs]
    run = runs[0]
    rows = run.labelled_rows(options.data) if options.data else run.held_out_rows()
    data = options.data or run.held_out()
    found = measure(runs, rows, batch_size=options.batch_size)
    print(f"{' + '.join(options.runs)} on {data}")
    for name, value in found.metrics.items():
        print(f"  {name:<24} {value:.4f}")
    if found.details:
        print(f"\n{found.details}")
    if options.output:
        write_json(Path(options.output), {"runs": options.runs, "data": data, **vars(found)})
    return 0
