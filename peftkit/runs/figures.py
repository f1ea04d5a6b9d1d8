"""Pictures of a run, as PNG files: losses, schedule, memory, confusions and ranks."""

import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError
from peftkit.files import read_json, write_file
from peftkit.training.metrics_log import read_metrics

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK = COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#000000"
)  # fmt: skip
"""Colours that people with any colour vision can tell apart (Okabe and Ito, 2008)."""

_FILES = {
    "loss": "loss.png",
    "schedule": "schedule.png",
    "memory": "memory.png",
    "ranks": "ranks.png",
    "confusion": "confusion.png",
}
_FONTS_OF_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "WenQuanYi Zen Hei",
    "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip
_COUNTED_CLASSES = 20  # up to so many, the cells of a confusion matrix hold their counts
_NAME_LENGTH = 24
_NAMED_LAYERS = 90
_TALLEST_INCHES = 14.0

Line = Mapping[str, Any]
"""One line of metrics.jsonl."""


def draw_all(directory: Path) -> dict[str, Path]:
    """Draw what a run's directory has data for, and return the pictures by name.

    The names are "loss", "schedule", "memory", "ranks" and "confusion".

    Raises:
        ConfigError: matplotlib is not installed.
    """
    lines = read_metrics(directory / "metrics.jsonl")
    paths = {name: directory / file for name, file in _FILES.items()}
    train = [line for line in lines if line["kind"] == "train"]
    drawn = []
    if any("loss" in line for line in lines):
        draw_losses(lines, paths["loss"])
        drawn.append("loss")
    if train:
        draw_schedule(lines, paths["schedule"])
        drawn.append("schedule")
    if any(line.get("memory_gib") is not None for line in train):
        draw_memory(lines, paths["memory"])
        drawn.append("memory")
    if any(line["kind"] == "ranks" for line in lines):
        draw_ranks(lines, paths["ranks"])
        drawn.append("ranks")
    after = directory / "after.json"
    confusion = read_json(after, ConfigError).get("confusion") if after.exists() else None
    if confusion and confusion["labels"]:
        draw_confusion(confusion["labels"], confusion["counts"], paths["confusion"])
        drawn.append("confusion")
    return {name: paths[name] for name in drawn}


def draw_losses(lines: Sequence[Line], path: Path) -> None:
    """Draw the training loss, each step and smoothed, and the held-out loss over the steps."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    train = points(lines, "train", "loss")
    held_out = points(lines, "evaluation", "loss")
    if train:
        axes.plot(*zip(*train, strict=True), color=BLUE, alpha=0.3, linewidth=1)
        axes.plot(
            *zip(*_smoothed(train), strict=True), color=BLUE, label="training (thick: smoothed)"
        )
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            color=VERMILLION,
            marker="o",
            markersize=5,
            label="held out",
        )
    finish(axes, "step", "loss (nats per supervised item)")
    if all(value >= 0 for _, value in (*train, *held_out)):
        axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, path)


def draw_schedule(lines: Sequence[Line], path: Path) -> None:
    """Draw the learning rate, and below it the norm of the gradient, over the steps."""
    figure = new_figure(8, 5.5)
    upper, lower = figure.subplots(2, sharex=True)
    rates = points(lines, "train", "learning_rate")
    norms = points(lines, "train", "gradient_norm")
    if rates:
        upper.plot(*zip(*rates, strict=True), color=BLUE)
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    finish(upper, "", "learning rate")
    upper.set_ylim(bottom=0)
    if norms:
        lower.plot(*zip(*norms, strict=True), color=VERMILLION, alpha=0.35, linewidth=1)
        lower.plot(*zip(*_smoothed(norms), strict=True), color=VERMILLION, label="smoothed")
        lower.legend()
    finish(lower, "step", "gradient norm, before clipping")
    sizes = [value for _, value in norms]
    if sizes and min(sizes) > 0 and max(sizes) > 30 * min(sizes):
        lower.set_yscale("log")
    else:
        lower.set_ylim(bottom=0)
    save(figure, path)


def draw_memory(lines: Sequence[Line], path: Path) -> None:
    """Draw the peak of the memory over the steps, in GiB."""
    figure = new_figure(8, 3.5)
    axes = figure.subplots()
    peaks = points(lines, "train", "memory_gib")
    if peaks:
        steps, sizes = zip(*peaks, strict=True)
        axes.plot(steps, sizes, color=BLUE)
        axes.fill_between(steps, sizes, color=BLUE, alpha=0.15, linewidth=0)
        axes.set_ylim(0, 1.15 * max(sizes))
        axes.set_title(f"at most {max(sizes):.2f} GiB", fontsize="medium", loc="right")
    finish(axes, "step", "peak memory (GiB)")
    save(figure, path)


def draw_confusion(labels: Sequence[str], counts: Sequence[Sequence[int]], path: Path) -> None:
    """Draw a confusion matrix: a row for each true class, coloured by the share of the row, with
    the counts in the cells.

    Args:
        labels: The names of the classes; long ones are shortened in the middle.
        counts: counts[i][j] rows of class i were taken for class j.
        path: The PNG to write.
    """
    many = len(labels)
    cell = 0.2 if many > _COUNTED_CLASSES else max(0.42, 2.2 / many)
    names = [shortened(str(label)) for label in labels]
    margin = 0.09 * max(map(len, names)) + 0.6
    side = min(many * cell, _TALLEST_INCHES - margin) + margin
    figure = new_figure(side + 1.0, side)
    axes = figure.subplots()
    totals = [max(1, sum(row)) for row in counts]
    shares = [[count / total for count in row] for row, total in zip(counts, totals, strict=True)]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if many <= _COUNTED_CLASSES else 6.5
    fits = 0.09 * max(map(len, names)) < cell
    style = {"fontsize": size, "parse_math": False, "fontfamily": _families()}
    axes.set_xticks(range(many), names, rotation=0 if fits else 90, **style)
    axes.set_yticks(range(many), names, **style)
    axes.set_xticks([place - 0.5 for place in range(1, many)], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, many)], minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    if many <= _COUNTED_CLASSES:
        _write_counts(axes, counts, shares, digits=int(cell / 0.085))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, format=_percent)
    bar.set_label("share of the true class")
    save(figure, path)


def _write_counts(
    axes: Any, counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], digits: int
) -> None:
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            text = str(count) if count < 10**digits else f"{count / 1000:.0f}k"
            color = "white" if shares[i][j] > 0.55 else "0.6" if count == 0 else "black"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)


def draw_ranks(lines: Sequence[Line], path: Path) -> None:
    """Draw the rank that AdaLoRA (arXiv:2303.10512) leaves each layer over the steps; layers in the
    model's order.
    """
    allocations = [line for line in lines if line["kind"] == "ranks"]
    steps = [line["step"] for line in allocations]
    layers = list(dict.fromkeys(layer for line in allocations for layer in line["ranks"]))
    ranks = [[line["ranks"].get(layer, 0) for line in allocations] for layer in layers]
    figure = new_figure(8.5, min(max(2.5, 0.145 * len(layers) + 0.9), _TALLEST_INCHES))
    axes = figure.subplots()
    image = axes.imshow(ranks, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    _name_layers(axes, layers)
    shown = range(0, len(steps), math.ceil(len(steps) / 12))
    axes.set_xticks(shown, [str(steps[place]) for place in shown])
    axes.set_xlabel("step")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=40)
    bar.set_label("rank")
    bar.locator = _whole_numbers()
    save(figure, path)


def _name_layers(axes: Any, layers: Sequence[str]) -> None:
    """Write the names of the layers on the left, or the numbers of their blocks where they are too
    many; part the blocks.
    """
    numbers = [next((part for part in layer.split(".") if part.isdigit()), "") for layer in layers]
    starts = [
        place for place in range(len(layers)) if place == 0 or numbers[place] != numbers[place - 1]
    ]
    for place in starts[1:]:
        axes.axhline(place - 0.5, color="white", linewidth=1)
    if len(layers) <= _NAMED_LAYERS:
        axes.set_yticks(range(len(layers)), short_names(layers), fontsize=7)
    else:
        every = math.ceil(len(starts) / _NAMED_LAYERS)
        axes.set_yticks(starts[::every], [numbers[place] for place in starts[::every]], fontsize=7)
        axes.set_ylabel("block")


def short_names(layers: Sequence[str]) -> list[str]:
    """Return names that tell the layers of a model apart: number and last part, or all but the
    common start.
    """
    parts = [layer.split(".") for layer in layers]
    short = [
        " ".join([*(part for part in each[:-1] if part.isdigit()), each[-1]]) for each in parts
    ]
    if len(set(short)) == len(short):
        return short
    common = 0
    while all(len(each) > common + 1 and each[common] == parts[0][common] for each in parts):
        common += 1
    return [".".join(each[common:]) for each in parts]


def points(lines: Sequence[Line], kind: str, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of a number in the lines of one kind that have it, without what is not
    finite.
    """
    found = [(line["step"], line.get(name)) for line in lines if line["kind"] == kind]
    return [
        (step, value)
        for step, value in found
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, which belongs to no window.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # optional, and slow to import
    except ImportError as problem:
        raise ConfigError("drawing needs matplotlib: pip install 'peftkit[recipes]'") from problem
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Any, xlabel: str, ylabel: str) -> None:
    """Give axes their labels and a light grid behind the data."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG of 120 dots an inch, whole or not at all."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # a class whose name no installed font can write
        figure.savefig(data, format="png", dpi=120)
    write_file(path, data.getvalue())


def _smoothed(given: Sequence[tuple[int, float]], weight: float = 0.9) -> list[tuple[int, float]]:
    """Return the points under an average that weighs the n-th neighbour on either side by weight^n,
    so that nothing lags.
    """
    values = [value for _, value in given]
    sums = list(zip(_decaying(values, weight), _decaying(values[::-1], weight)[::-1], strict=True))
    ones = _decaying([1.0] * len(values), weight)
    counts = zip(ones, ones[::-1], strict=True)
    return [
        (step, (left + right - value) / (before + after - 1))
        for (step, value), (left, right), (before, after) in zip(given, sums, counts, strict=True)
    ]


def _decaying(values: Sequence[float], weight: float) -> list[float]:
    """Return each value plus `weight` times the sum before it."""
    return list(itertools.accumulate(values, lambda total, value: weight * total + value))


def shortened(name: str) -> str:
    """Return a long name with its middle left out."""
    if len(name) <= _NAME_LENGTH:
        return name
    half = (_NAME_LENGTH - 1) // 2
    return f"{name[: half + 1]}…{name[-half:]}"


def _percent(share: float, place: int | None = None) -> str:
    return f"{share:.0%}"


def _families() -> list[str]:
    """Return matplotlib's own font, and behind it installed ones that have the letters of other
    scripts.
    """
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FONTS_OF_OTHER_SCRIPTS if name in installed)]


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
