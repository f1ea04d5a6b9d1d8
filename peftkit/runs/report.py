"""report.md and its pictures: what a run did, for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from peftkit.files import read_json, write_file
from peftkit.metrics.measured import Measured
from peftkit.metrics.tables import markdown
from peftkit.runs.figures import draw_all
from peftkit.training.metrics_log import read_metrics
from peftkit.training.progress_line import memory_bytes

_PICTURES = {
    "loss": "loss over steps",
    "schedule": "learning rate and gradient norm over steps",
    "memory": "memory over steps",
    "confusion": "confusion matrix",
    "ranks": "AdaLoRA's ranks over steps",
}


def write_report(
    directory: Path,
    title: str,
    measured: Mapping[str, Measured],
    shown: Sequence[tuple[str, str]] = (),
    *,
    remarks: Sequence[str] = (),
) -> Path:
    """Write ``report.md`` and its pictures into a run's directory, from its metrics and the given
    measurements.

    Args:
        directory: The run's directory; its ``after.json`` holds the confusion of classes.
        title: The report's first line.
        measured: The columns to show side by side: "before", "after" and so on.
        shown: What was asked and what was expected, for each of the predictions in `measured`.
        remarks: Sentences to print below the table.
    """
    metrics = read_metrics(directory / "metrics.jsonl")
    pictures = draw_all(directory)
    environment = read_json(directory / "environment.json")
    names = dict.fromkeys(name for each in measured.values() for name in each.metrics)
    rows = [
        [name, *(_number(each.metrics.get(name)) for each in measured.values())] for name in names
    ]
    steps = [entry for entry in metrics if entry["kind"] == "train"]
    seconds = steps[-1]["seconds"] if steps else 0.0
    items = sum(entry["items"] for entry in steps)
    where = (
        environment["gpu"] or f"{environment['threads']} CPU threads ({environment['processor']})"
    )
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    details = measured["after"].details if "after" in measured else ""
    lines = [
        f"# {title}",
        "",
        markdown(["", *measured], rows),
        "",
        *(f"{remark}\n" for remark in remarks),
        *([details, ""] if details else []),
        *(f"![{_PICTURES[name]}]({path.name})\n" for name, path in pictures.items()),
        f"{len(steps)} steps over {items:.0f} supervised items in {seconds / 60:.1f} minutes, on {where}, "
        f"{environment['processes']} process(es); peak memory {memory_bytes()[1] / 2**30:.2f} GiB.",
        "",
        *_predictions(measured, shown),
        "## Settings",
        "",
        "```yaml",
        (directory / "config.yaml").read_text("utf-8").rstrip(),
        "```",
        "",
        f"Python {environment['python']}, {packages}.",
    ]
    path = directory / "report.md"
    write_file(path, ("\n".join(lines) + "\n").encode())
    return path


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _predictions(measured: Mapping[str, Measured], shown: Sequence[tuple[str, str]]) -> list[str]:
    if not shown:
        return []
    rows = [
        [asked, *(each.predictions[number] for each in measured.values()), expected]
        for number, (asked, expected) in enumerate(shown)
    ]
    return ["## Predictions", "", markdown(["input", *measured, "expected"], rows), ""]
