"""Pictures of a run, as PNG files: losses, schedule, memory, confusion matrix and ranks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.preview.statistics import Bin
from peftkit.errors import ConfigError
from peftkit.files import read_json
from peftkit.runs.drawing import (
    BLUE,
    VERMILLION,
    finish,
    needs_log_scale,
    new_figure,
    save,
    shorten,
)
from peftkit.training.metrics_log import read_metrics

_FONTS_OF_OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "WenQuanYi Zen Hei",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Thai",
    "Arial Unicode MS",
)
_COUNTED_CLASSES = 20  # with more classes, a confusion matrix shows colours and no counts
_NAMED_LAYERS = 90  # with more layers, the picture of the ranks names blocks
_TALLEST_INCHES = 14.0
_LETTER_INCHES = 0.09  # width of a letter of an axis label
_DIGIT_INCHES = 0.085

Line = Mapping[str, Any]
"""One line of metrics.jsonl."""
Point = tuple[int, float]
"""A step, and a value there."""


def draw_all(directory: Path) -> dict[str, Path]:
    """Draw what a run's directory has data for, and return the pictures by name.

    The names are "loss", "schedule", "memory", "ranks" and "confusion".

    Raises:
        ConfigError: matplotlib is not installed.
    """
    lines = read_metrics(directory / "metrics.jsonl")
    draws = {
        "loss": draw_losses,
        "schedule": draw_schedule,
        "memory": draw_memory,
        "ranks": draw_ranks,
    }
    pictures = {}
    for name in _pictures_with_data(lines):
        pictures[name] = directory / f"{name}.png"
        draws[name](lines, pictures[name])
    confusion = _read_confusion(directory)
    if confusion is not None:
        pictures["confusion"] = directory / "confusion.png"
        draw_confusion(confusion["labels"], confusion["counts"], pictures["confusion"])
    return pictures


def _pictures_with_data(lines: Sequence[Line]) -> list[str]:
    """Return the names of the pictures that the lines have data for, in the report's order."""
    has_data = dict.fromkeys(("loss", "schedule", "memory", "ranks"), False)
    for line in lines:
        is_train = line["kind"] == "train"
        has_data["loss"] |= "loss" in line
        has_data["schedule"] |= is_train
        has_data["memory"] |= is_train and line.get("memory_gib") is not None
        has_data["ranks"] |= line["kind"] == "ranks"
    return [name for name, is_there in has_data.items() if is_there]


def _read_confusion(directory: Path) -> dict[str, Any] | None:
    path = directory / "after.json"
    if not path.exists():
        return None
    confusion: dict[str, Any] | None = read_json(path, ConfigError).get("confusion")
    if confusion is None or not confusion["labels"]:
        return None
    return confusion


def draw_losses(lines: Sequence[Line], path: Path) -> None:
    """Draw the training loss, each step and smoothed, and the held-out loss over the steps."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    train = points(lines, "train", "loss")
    held_out = points(lines, "evaluation", "loss")
    if train:
        axes.plot(*_coordinates(train), color=BLUE, alpha=0.3, linewidth=1)
        axes.plot(*_coordinates(_smooth(train)), color=BLUE, label="training (thick: smoothed)")
    if held_out:
        axes.plot(
            *_coordinates(held_out), color=VERMILLION, marker="o", markersize=5, label="held out"
        )
    finish(axes, "step", "loss (nats per supervised item)")
    if all(loss >= 0 for _, loss in train + held_out):
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
        upper.plot(*_coordinates(rates), color=BLUE)
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    finish(upper, "", "learning rate")
    upper.set_ylim(bottom=0)
    if norms:
        lower.plot(*_coordinates(norms), color=VERMILLION, alpha=0.35, linewidth=1)
        lower.plot(*_coordinates(_smooth(norms)), color=VERMILLION, label="smoothed")
        lower.legend()
    finish(lower, "step", "gradient norm, before clipping")
    if needs_log_scale([norm for _, norm in norms]):
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
        steps, sizes = _coordinates(peaks)
        axes.plot(steps, sizes, color=BLUE)
        axes.fill_between(steps, sizes, color=BLUE, alpha=0.15, linewidth=0)
        axes.set_ylim(0, 1.15 * max(sizes))
        axes.set_title(f"at most {max(sizes):.2f} GiB", fontsize="medium", loc="right")
    finish(axes, "step", "peak memory (GiB)")
    save(figure, path)


def draw_lengths(bins: Sequence[Bin], max_length: int | None, path: Path) -> None:
    """Draw how many examples have which length in tokens, and the longest that they may have."""
    figure = new_figure(8, 3)
    axes = figure.subplots()
    starts = [each.start for each in bins]
    widths = [each.end + 1 - each.start for each in bins]
    counts = [each.count for each in bins]
    axes.bar(starts, counts, widths, align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    finish(axes, "length in tokens", "examples")
    axes.yaxis.set_major_locator(_whole_numbers())
    if max_length is not None and max_length < bins[-1].end + widths[-1]:
        axes.axvline(max_length + 1, color=VERMILLION, linestyle="--", linewidth=1.2)
        axes.set_title("dashed: data.max_length", fontsize="medium", loc="right")
    save(figure, path)


def draw_confusion(labels: Sequence[str], counts: Sequence[Sequence[int]], path: Path) -> None:
    """Draw a confusion matrix: a row for each true class, coloured by the share of the row.

    Args:
        labels: The names of the classes; long ones are shortened in the middle.
        counts: counts[i][j] rows of class i were predicted as class j.
        path: The PNG to write.
    """
    many = len(labels)
    has_counts = many <= _COUNTED_CLASSES
    cell = max(0.42, 2.2 / many) if has_counts else 0.2  # inches
    names = [shorten(str(label)) for label in labels]
    widest = _LETTER_INCHES * max(map(len, names))
    margin = widest + 0.6
    side = min(many * cell, _TALLEST_INCHES - margin) + margin
    figure = new_figure(side + 1.0, side)
    axes = figure.subplots()
    shares = _shares_of_rows(counts)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    style = {
        "fontsize": 9 if has_counts else 6.5,
        "parse_math": False,  # a class may be called $x$
        "fontfamily": _font_families(),
    }
    axes.set_xticks(range(many), names, rotation=0 if widest < cell else 90, **style)
    axes.set_yticks(range(many), names, **style)
    _draw_cell_borders(axes, many)
    axes.set(xlabel="predicted class", ylabel="true class")
    if has_counts:
        _write_counts(axes, counts, shares, digits=int(cell / _DIGIT_INCHES))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, format=_percent)
    bar.set_label("share of the true class")
    save(figure, path)


def _shares_of_rows(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return each count as a share of its row; an empty row has shares of 0."""
    shares = []
    for row in counts:
        total = max(1, sum(row))
        shares.append([count / total for count in row])
    return shares


def _draw_cell_borders(axes: Any, many: int) -> None:
    borders = [place - 0.5 for place in range(1, many)]
    axes.set_xticks(borders, minor=True)
    axes.set_yticks(borders, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def _write_counts(
    axes: Any, counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], digits: int
) -> None:
    """Write each count into its cell; in thousands where it has more digits than fit."""
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            text = str(count) if count < 10**digits else f"{count / 1000:.0f}k"
            color = _color_of_count(count, shares[i][j])
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)


def _color_of_count(count: int, share: float) -> str:
    if share > 0.55:  # on a dark cell
        return "white"
    return "black" if count else "0.6"


def draw_ranks(lines: Sequence[Line], path: Path) -> None:
    """Draw the rank that AdaLoRA (arXiv:2303.10512) leaves each layer, over the steps.

    The layers are in the model's order.
    """
    allocations = [line for line in lines if line["kind"] == "ranks"]
    steps = [line["step"] for line in allocations]
    layers = _layers_of(allocations)
    ranks = []  # [layers, steps]
    for layer in layers:
        ranks.append([line["ranks"].get(layer, 0) for line in allocations])
    height = min(max(2.5, 0.145 * len(layers) + 0.9), _TALLEST_INCHES)
    figure = new_figure(8.5, height)
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


def _layers_of(allocations: Sequence[Line]) -> list[str]:
    """Return the layers of all allocations, each once, in the order of the first ones."""
    layers: dict[str, None] = {}
    for line in allocations:
        layers |= dict.fromkeys(line["ranks"])
    return list(layers)


def _name_layers(axes: Any, layers: Sequence[str]) -> None:
    """Draw a line between blocks, and write the layers' names on the left.

    Where they are too many, the numbers of the blocks are written instead.
    """
    blocks = [_block_number(layer) for layer in layers]
    starts = []  # the first layer of each block
    for place, block in enumerate(blocks):
        if place == 0 or block != blocks[place - 1]:
            starts.append(place)
    for place in starts[1:]:
        axes.axhline(place - 0.5, color="white", linewidth=1)
    if len(layers) <= _NAMED_LAYERS:
        axes.set_yticks(range(len(layers)), short_names(layers), fontsize=7)
        return
    every = math.ceil(len(starts) / _NAMED_LAYERS)
    named = starts[::every]
    axes.set_yticks(named, [blocks[place] for place in named], fontsize=7)
    axes.set_ylabel("block")


def _block_number(layer: str) -> str:
    """Return the first number in a layer's name; an empty text if there is none."""
    for part in layer.split("."):
        if part.isdigit():
            return part
    return ""


def short_names(layers: Sequence[str]) -> list[str]:
    """Return names by which the layers of a model can be told apart.

    They are the block's number and the last part, such as "0 q_proj"; where that is not enough,
    they are the whole names without their common start.
    """
    parts = [layer.split(".") for layer in layers]
    short = []
    for each in parts:
        numbers = [part for part in each[:-1] if part.isdigit()]
        short.append(" ".join([*numbers, each[-1]]))
    if len(set(short)) == len(short):
        return short
    common = _common_start(parts)
    return [".".join(each[common:]) for each in parts]


def _common_start(parts: Sequence[Sequence[str]]) -> int:
    """Return how many first parts are the same in all names, leaving each name one part."""
    common = 0
    for column in zip(*parts, strict=False):  # as long as the shortest name
        if len(set(column)) > 1:
            break
        common += 1
    return min(common, min(map(len, parts)) - 1)


def points(lines: Sequence[Line], kind: str, name: str) -> list[Point]:
    """Return (step, value) of each line of one kind that has a finite number of that name."""
    found = []
    for line in lines:
        value = line.get(name)
        if line["kind"] != kind or not isinstance(value, int | float):
            continue
        if math.isfinite(value):
            found.append((line["step"], value))
    return found


def _coordinates(given: Sequence[Point]) -> tuple[list[int], list[float]]:
    """Return the steps and the values, as matplotlib takes them."""
    return [step for step, _ in given], [value for _, value in given]


def _smooth(given: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """Return the points under an average that looks both ways, so that nothing lags.

    The n-th neighbour on either side has the weight w^n:

        smooth_i = sum_j w^|i-j| value_j / sum_j w^|i-j|

    Each sum is one from the left plus one from the right, less the middle that is in both.
    """
    steps, values = _coordinates(given)
    left = _decaying_sums(values, weight)
    right = _decaying_sums(values[::-1], weight)[::-1]
    before = _decaying_sums([1.0] * len(values), weight)
    after = before[::-1]
    smooth = []
    for i, value in enumerate(values):
        total = left[i] + right[i] - value
        weights = before[i] + after[i] - 1
        smooth.append((steps[i], total / weights))
    return smooth


def _decaying_sums(values: Sequence[float], weight: float) -> list[float]:
    """Return each value plus `weight` times the sum before it."""
    return list(itertools.accumulate(values, lambda total, value: weight * total + value))


def _percent(share: float, place: int | None = None) -> str:
    return f"{share:.0%}"


def _font_families() -> list[str]:
    """Return matplotlib's own font, and installed fonts with the letters of other scripts."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    others = [name for name in _FONTS_OF_OTHER_SCRIPTS if name in installed]
    return ["DejaVu Sans", *others]


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)
