"""report.md and loss.png: what a run did, for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.files import read_json, write_file
from peftkit.training.metrics import memory_bytes, read_metrics


@dataclasses.dataclass(frozen=True)
class Sample:
    """One prompt with the answers to it before and after training, and what was expected, if anything was."""

    prompt: str
    before: str
    after: str
    expected: str = ""


def write_report(
    directory: Path,
    title: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    samples: Sequence[Sample] = (),
    remarks: Sequence[str] = (),
) -> Path:
    """Write ``report.md`` and ``loss.png`` into a run's directory, from its metrics and the given measurements.

    Args:
        directory: The run's directory.
        title: The report's first line.
        before: Measurements before training, by name.
        after: The same after it.
        samples: Answers to show side by side.
        remarks: Sentences to print below the table.
    """
    metrics = read_metrics(directory / "metrics.jsonl")
    _draw_losses(metrics, directory / "loss.png")
    environment = read_json(directory / "environment.json")
    rows = [f"| {name} | {_number(before.get(name))} | {_number(value)} |" for name, value in after.items()]
    steps = [entry for entry in metrics if entry["kind"] == "train"]
    seconds = steps[-1]["seconds"] if steps else 0.0
    items = sum(entry["items"] for entry in steps)
    where = environment["gpu"] or f"{environment['threads']} CPU threads ({environment['processor']})"
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines = [
        f"# {title}",
        "",
        "| | before | after |",
        "| --- | --- | --- |",
        *rows,
        "",
        *(f"{remark}\n" for remark in remarks),
        "![loss over steps](loss.png)",
        "",
        f"{len(steps)} steps over {items:.0f} supervised tokens in {seconds / 60:.1f} minutes, on {where}, "
        f"{environment['processes']} process(es); peak memory {memory_bytes()[1] / 2**30:.2f} GiB.",
        "",
        *_sample_lines(samples),
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


def _sample_lines(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return []
    head = ["## Answers", "", "| prompt | before | after | expected |", "| --- | --- | --- | --- |"]
    cells = [[sample.prompt, sample.before, sample.after, sample.expected] for sample in samples]
    return [*head, *("| " + " | ".join(map(_cell, row)) + " |" for row in cells), ""]


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
