"""report.md and loss.png: what a run did, for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.questions import Question
from peftkit.files import read_json, write_file
from peftkit.training.metrics import memory_bytes, read_metrics


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model scored, by name, and how it answered the questions."""

    metrics: dict[str, float]
    answers: list[str]


def write_report(
    directory: Path,
    title: str,
    measured: Mapping[str, Measured],
    asked: Sequence[Question] = (),
    *,
    samples: int = 12,
    remarks: Sequence[str] = (),
) -> Path:
    """Write ``report.md`` and ``loss.png`` into a run's directory, from its metrics and the given measurements.

    Args:
        directory: The run's directory.
        title: The report's first line.
        measured: The columns to show side by side: "before", "after" and so on.
        asked: The questions that were answered.
        samples: How many answers to show, spread over the questions.
        remarks: Sentences to print below the table.
    """
    metrics = read_metrics(directory / "metrics.jsonl")
    _draw_losses(metrics, directory / "loss.png")
    environment = read_json(directory / "environment.json")
    names = dict.fromkeys(name for each in measured.values() for name in each.metrics)
    rows = [[name, *(_number(each.metrics.get(name)) for each in measured.values())] for name in names]
    steps = [entry for entry in metrics if entry["kind"] == "train"]
    seconds = steps[-1]["seconds"] if steps else 0.0
    items = sum(entry["items"] for entry in steps)
    where = environment["gpu"] or f"{environment['threads']} CPU threads ({environment['processor']})"
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines = [
        f"# {title}",
        "",
        *_table(["", *measured], rows),
        *(f"{remark}\n" for remark in remarks),
        "![loss over steps](loss.png)",
        "",
        f"{len(steps)} steps over {items:.0f} supervised tokens in {seconds / 60:.1f} minutes, on {where}, "
        f"{environment['processes']} process(es); peak memory {memory_bytes()[1] / 2**30:.2f} GiB.",
        "",
        *_answers(measured, asked, samples),
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


def _answers(measured: Mapping[str, Measured], asked: Sequence[Question], samples: int) -> list[str]:
    if not asked or samples < 1:
        return []
    shown = range(0, len(asked), max(1, len(asked) // samples))
    rows = [
        [
            asked[i].shown,
            *(each.answers[i] for each in measured.values()),
            ", ".join(asked[i].expect) or asked[i].reference,
        ]
        for i in shown
    ]
    return ["## Answers", "", *_table(["question", *measured, "expected"], rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*("| " + " | ".join(map(_cell, row)) + " |" for row in (head, ["---"] * len(head), *rows)), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _draw_losses(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    import matplotlib as mpl  # a recipe's need, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    train = [(entry["step"], entry["loss"]) for entry in metrics if entry["kind"] == "train"]
    held_out = [(entry["step"], entry["loss"]) for entry in metrics if entry["kind"] == "evaluation"]
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.3, linewidth=1)
        axes.plot(*zip(*_smoothed(train), strict=True), color="tab:blue", label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="held out")
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if train or held_out:
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _smoothed(points: Sequence[tuple[int, float]], weight: float = 0.9) -> list[tuple[int, float]]:
    """Return the points under an exponential average that is corrected for its start."""
    average, total, smoothed = 0.0, 0.0, []
    for step, value in points:
        average, total = weight * average + (1 - weight) * value, weight * total + (1 - weight)
        smoothed.append((step, average / total))
    return smoothed
