"""report.md and its pictures: what a run did, for a person to read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.preview.contents import Preview
from peftkit.data.preview.terminal import example_in_text
from peftkit.files import read_json, write_file
from peftkit.metrics.measurement import Measurement
from peftkit.metrics.tables import markdown
from peftkit.runs.figures import draw_all, draw_lengths
from peftkit.training.metrics_log import read_metrics
from peftkit.training.progress_line import memory_bytes

DATA_PAGE = "data.html"
"""The file of a run's directory that shows what is learned."""
_LONGEST_EXAMPLE = 4000  # characters
_CAPTIONS = {
    "loss": "loss over steps",
    "schedule": "learning rate and gradient norm over steps",
    "memory": "memory over steps",
    "confusion": "confusion matrix",
    "ranks": "AdaLoRA's ranks over steps",
}


def write_report(
    directory: Path,
    title: str,
    measured: Mapping[str, Measurement],
    shown: Sequence[tuple[str, str]] = (),
    *,
    remarks: Sequence[str] = (),
    preview: Preview | None = None,
) -> Path:
    """Write ``report.md`` and its pictures into a run's directory, and return the report.

    Args:
        directory: The run's directory; its ``after.json`` holds the confusion matrix.
        title: The report's first line.
        measured: The columns to show side by side: "before", "after" and so on.
        shown: For each prediction in `measured`, the input and the expected output.
        remarks: Sentences to print below the table.
        preview: What is learned of the training rows.
    """
    environment = read_json(directory / "environment.json")
    # Each of these is a paragraph, and ends with an empty line.
    paragraphs = [f"# {title}", _table_of_metrics(measured), *remarks]
    if "after" in measured and measured["after"].details:
        paragraphs.append(measured["after"].details)
    for name, path in draw_all(directory).items():
        paragraphs.append(f"![{_CAPTIONS[name]}]({path.name})")
    paragraphs.append(_cost(read_metrics(directory / "metrics.jsonl"), environment))
    if shown:
        paragraphs += ["## Predictions", _table_of_predictions(measured, shown)]
    if preview is not None:
        paragraphs += ["## What is learned", *_learned(preview, directory)]
    config = (directory / "config.yaml").read_text("utf-8").rstrip()
    paragraphs += ["## Settings", f"```yaml\n{config}\n```", _versions(environment)]
    report = directory / "report.md"
    write_file(report, ("\n\n".join(paragraphs) + "\n").encode())
    return report


def _table_of_metrics(measured: Mapping[str, Measurement]) -> str:
    names: dict[str, None] = {}  # each once, in the order of the first column
    for column in measured.values():
        names |= dict.fromkeys(column.metrics)
    rows = []
    for name in names:
        values = [column.metrics.get(name) for column in measured.values()]
        rows.append([name, *map(_spelled, values)])
    return markdown(["", *measured], rows)


def _spelled(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _cost(lines: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """Return how many steps were made, over how much, in which time, where, and in what memory."""
    steps = [line for line in lines if line["kind"] == "train"]
    seconds = steps[-1]["seconds"] if steps else 0.0
    items = sum(step["items"] for step in steps)
    cpu = f"{environment['threads']} CPU threads ({environment['processor']})"
    _, peak = memory_bytes()
    return (
        f"{len(steps)} steps over {items:.0f} supervised items in {seconds / 60:.1f} minutes, on "
        f"{environment['gpu'] or cpu}, {environment['processes']} process(es); "
        f"peak memory {peak / 2**30:.2f} GiB."
    )


def _table_of_predictions(
    measured: Mapping[str, Measurement], shown: Sequence[tuple[str, str]]
) -> str:
    rows = []
    for number, (given, expected) in enumerate(shown):
        predictions = [column.predictions[number] for column in measured.values()]
        rows.append([given, *predictions, expected])
    return markdown(["input", *measured, "expected"], rows)


def _learned(preview: Preview, directory: Path) -> list[str]:
    """Return the figures of the training rows, an example, and where to see more of them."""
    rows = [[figure.name, str(figure)] for figure in preview.statistics.figures()]
    paragraphs = [markdown(["training rows", ""], rows), *preview.warnings]
    bins = preview.statistics.bins()
    if bins:
        path = directory / "lengths.png"
        draw_lengths(bins, preview.statistics.max_length, path)
        paragraphs.append(f"![lengths of the examples]({path.name})")
    if preview.examples:
        shown = preview.examples[0]
        text = example_in_text(shown)[:_LONGEST_EXAMPLE].rstrip("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        paragraphs.append(f"One example, {shown.where}. What is between ⟦ and ⟧ is learned:")
        paragraphs.append(f"{fence}text\n{text}\n{fence}")
    if (directory / DATA_PAGE).exists():
        paragraphs.append(f"[More examples, token by token]({DATA_PAGE})")
    return paragraphs


def _versions(environment: Mapping[str, Any]) -> str:
    packages = [f"{name} {version}" for name, version in environment["packages"].items()]
    return f"Python {', '.join([environment['python'], *packages])}."
