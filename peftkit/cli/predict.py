"""`peftkit predict`: write the predictions of finished runs for new rows."""

import argparse
from pathlib import Path
from typing import Any

from peftkit.cli.arguments import check_output, positive


def add_to(commands: Any) -> None:
    """Add the verb to the parser's commands."""
    verb = commands.add_parser(
        "predict",
        help="write the predictions of a finished run for new rows, or the mean of several runs",
    )
    verb.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the directory of a run; the predictions of several are averaged (an ensemble)",
    )
    verb.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="a data file, or sample:NAME/SPLIT; it needs no labels",
    )
    verb.add_argument(
        "--output",
        required=True,
        metavar="FILE.jsonl",
        help="the file to write: the rows with their predictions",
    )
    verb.add_argument(
        "--batch_size",
        type=positive,
        default=32,
        metavar="N",
        help="rows in one forward pass (default: 32)",
    )
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from peftkit.files import write_rows
    from peftkit.runs.opening import open_run
    from peftkit.runs.prediction import predict

    check_output(options.output)
    runs = [open_run(directory) for directory in options.runs]
    task = runs[0].task
    rows = task.read(options.data, labelled=False)
    outputs = predict(runs, rows, batch_size=options.batch_size)
    predictions = task.predictions(rows, outputs)
    written = [row | each for row, each in zip(rows, predictions, strict=True)]
    write_rows(Path(options.output), written)
    print(f"{options.output}: {len(rows)} rows")
    return 0
