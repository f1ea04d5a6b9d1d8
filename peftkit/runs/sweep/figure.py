"""sweep.png: the metric over the trials, and against each setting."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.runs.drawing import (
    BLUE,
    VERMILLION,
    finish,
    needs_log_scale,
    new_figure,
    save,
    shorten,
)
from peftkit.runs.sweep.space import Dimension, Range, Space, shown

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_LABEL_LENGTHS = 30  # letters that fit side by side below a panel
_COLUMNS = 3


def draw_sweep(study: "Study", space: Space, path: Path) -> None:
    """Draw the metric over the trials with the best so far, and against each setting."""
    panels = 1 + len(space.dimensions)
    columns = min(panels, _COLUMNS)
    rows = math.ceil(panels / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    values = [_value(trial) for trial in done]
    _draw_progress(grid[0], study.trials, study.direction.name == "MINIMIZE")
    for axes, (key, dimension) in zip(grid[1:], space.dimensions.items(), strict=False):
        _set_up_axis(axes, dimension)
        places = [_place(trial, key, dimension) for trial in done]
        axes.scatter(places, values, color=BLUE, alpha=0.7, s=28, linewidth=0)
        best = study.best_trial
        best_place = _place(best, key, dimension)
        axes.scatter([best_place], [best.value], color=VERMILLION, marker="*", s=130)
        finish(axes, key, "")
    for axes in grid[panels:]:
        axes.set_visible(False)
    if needs_log_scale(values):
        grid[0].set_yscale("log")
    for row in range(rows):
        grid[row * columns].set_ylabel(study.study_name)
    save(figure, path)


def _draw_progress(axes: Any, trials: "Sequence[FrozenTrial]", minimizes: bool) -> None:
    """Draw the metric over the trials.

    Those that were stopped early have no value to compare, and are marked on the axis.
    """
    numbers, values, best_so_far, stopped = [], [], [], []
    for trial in trials:
        if trial.state.name == "PRUNED":
            stopped.append(trial.number + 1)
        elif trial.state.name == "COMPLETE":
            numbers.append(trial.number + 1)
            values.append(_value(trial))
            best_so_far.append(min(values) if minimizes else max(values))
    axes.scatter(numbers, values, color=BLUE, alpha=0.7, s=28, linewidth=0, label="finished")
    axes.step(numbers, best_so_far, where="post", color=VERMILLION, label="best so far")
    if stopped:
        axes.scatter(
            stopped,
            [0.0] * len(stopped),
            color="0.4",
            marker="x",
            s=28,
            label="stopped early",
            transform=axes.get_xaxis_transform(),  # 0 is the axis, whatever the values are
            clip_on=False,
            zorder=5,
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    finish(axes, "trial", "")
    axes.legend(fontsize="small")


def _set_up_axis(axes: Any, dimension: Dimension) -> None:
    """Give an axis the scale, the ticks and the ends of what was tried."""
    if not isinstance(dimension, Range):
        _name_values(axes, dimension)
    elif dimension.log:
        axes.set_xscale("log")
        ticks = _log_ticks(dimension.low, dimension.last)
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(dimension.low / 1.2, dimension.last * 1.2)
    else:
        axes.locator_params(axis="x", nbins=5)
        edge = 0.05 * (dimension.last - dimension.low)
        axes.set_xlim(dimension.low - edge, dimension.last + edge)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten from low to high; the ends and their middle if that is only one."""
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    if last > first:
        return [10.0**power for power in range(first, last + 1)]
    return [low, math.sqrt(low * high), high]


def _name_values(axes: Any, values: Sequence[Any]) -> None:
    names = [shorten(shown(value)) for value in values]
    style = {}
    if len("".join(names)) > _LABEL_LENGTHS:
        style = {"rotation": 25, "ha": "right", "fontsize": "small"}
    axes.set_xticks(range(len(values)), names, parse_math=False, **style)
    axes.set_xlim(-0.5, len(values) - 0.5)


def _place(trial: "FrozenTrial", key: str, dimension: Dimension) -> Any:
    """Return where a trial is on the axis of a setting."""
    drawn = trial.params[key]
    if isinstance(dimension, Range):
        return drawn
    return list(map(json.dumps, dimension)).index(drawn)


def _value(trial: "FrozenTrial") -> float:
    assert trial.value is not None
    value: float = trial.value
    return value
