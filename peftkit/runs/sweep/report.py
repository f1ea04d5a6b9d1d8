"""report.md, sweep.png and best.yaml: what a search has found."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.config.reading import read, to_yaml
from peftkit.files import write_file
from peftkit.metrics.tables import markdown
from peftkit.runs.drawing import BLUE, VERMILLION, finish, new_figure, save, shorten
from peftkit.runs.sweep.space import Range, Space, shown, spelled, words
from peftkit.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_LABEL_LENGTHS = 30  # letters that fit side by side below a panel
_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "unfinished",
    "WAITING": "waiting",
}


def write_sweep_report(study: "Study", space: Space, kind: type, base: Path, output: Path) -> Path:
    """Write ``report.md``, and where a trial has finished ``best.yaml`` and ``sweep.png``, and
    return the report.

    Args:
        study: Its name is the metric's.
        space: What was tried.
        kind: The recipe's config.
        base: The config that the trials change.
        output: The directory of the search.
    """
    metric, trials = study.study_name, _sorted(study)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    rows = [_row(trial, space, output) for trial in trials if trial.state.name != "WAITING"]
    lines = [f"# {metric}, to {study.direction.name.lower()}, over {len(rows)} trials", ""]
    if done:
        best = space.values(done[0].params)
        config: object = read(kind, words(base, best, output / "best"))
        write_file(output / "best.yaml", to_yaml(config).encode())
        _draw(study, space, output / "sweep.png")
        lines += [
            f"The best is {metric} {done[0].value:.4g} with {spelled(best)}: trial {done[0].number + 1}, whose run is "
            f"trials/{done[0].user_attrs['directory']}. best.yaml is the config that trains with these settings once more.",
            "",
            f"The best of {len(done)} trials is optimistic, since the rows that it was chosen on are those that it is "
            "measured on: measure it once more on rows that no trial has seen.",
            "",
            "![the metric over the trials, and against each setting](sweep.png)",
            "",
        ]
    head = ["trial", metric, *space.dimensions, "", "minutes", "run"]
    path = output / "report.md"
    write_file(path, ("\n".join([*lines, markdown(head, rows)]) + "\n").encode())
    return path


def _sorted(study: "Study") -> "list[FrozenTrial]":
    """Return the trials: finished ones from the best to the worst, then those stopped early, then
    the others.
    """
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    order = list(_STATES)

    def place(trial: "FrozenTrial") -> tuple[int, float, int]:
        value = math.inf if trial.value is None else sign * trial.value
        return order.index(trial.state.name), value, trial.number

    return sorted(study.trials, key=place)


def _row(trial: "FrozenTrial", space: Space, output: Path) -> list[str]:
    name = trial.user_attrs.get("directory", "")
    steps = [
        line
        for line in read_metrics(output / "trials" / name / "metrics.jsonl")
        if line["kind"] == "train"
    ]
    state, error = (
        _STATES[trial.state.name],
        trial.user_attrs.get("error") or trial.user_attrs.get("remark"),
    )
    values = space.values(trial.params) if trial.params.keys() == space.dimensions.keys() else {}
    return [
        str(trial.number + 1),
        "" if trial.value is None else f"{trial.value:.4g}",
        *(shown(values[key]) if key in values else "" for key in space.dimensions),
        f"{state}: {error}" if error else state,
        f"{steps[-1]['seconds'] / 60:.1f}" if steps else "",
        f"trials/{name}",
    ]


def _draw(study: "Study", space: Space, path: Path) -> None:
    """Draw the metric over the trials with the best so far, and against each setting."""
    panels = 1 + len(space.dimensions)
    columns = min(panels, 3)
    rows = math.ceil(panels / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    best = study.best_trial
    values = [_value(trial) for trial in done]
    _draw_progress(grid[0], study.trials, study.direction.name == "MINIMIZE")
    for axes, (key, dimension) in zip(grid[1:], space.dimensions.items(), strict=False):
        places = _places(axes, key, dimension, done)
        axes.scatter(places, values, color=BLUE, alpha=0.7, s=28, linewidth=0)
        axes.scatter(
            _places(axes, key, dimension, [best]), [best.value], color=VERMILLION, marker="*", s=130
        )
        finish(axes, key, "")
    for axes in grid[panels:]:
        axes.set_visible(False)
    if min(values) > 0 and max(values) > 30 * min(values):
        grid[0].set_yscale("log")
    for row in range(rows):
        grid[row * columns].set_ylabel(study.study_name)
    save(figure, path)


def _draw_progress(axes: Any, trials: "Sequence[FrozenTrial]", minimizes: bool) -> None:
    """Draw the metric over the trials; those stopped early, which have no value that could be
    compared, are marked below.
    """
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    cut = [trial.number + 1 for trial in trials if trial.state.name == "PRUNED"]
    better = min if minimizes else max
    numbers, values = [trial.number + 1 for trial in done], [_value(trial) for trial in done]
    so_far = [better(values[: place + 1]) for place in range(len(values))]
    axes.scatter(numbers, values, color=BLUE, alpha=0.7, s=28, linewidth=0, label="finished")
    axes.step(numbers, so_far, where="post", color=VERMILLION, label="best so far")
    if cut:
        below = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        axes.scatter(
            cut, [0.0] * len(cut), color="0.4", marker="x", s=28, label="stopped early", **below
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    finish(axes, "trial", "")
    axes.legend(fontsize="small")


def _places(
    axes: Any, key: str, dimension: Range | list[Any], trials: "Sequence[FrozenTrial]"
) -> list[Any]:
    """Return where the trials are on the axis of a setting, which is set up for it."""
    if isinstance(dimension, Range):
        if dimension.log:
            axes.set_xscale("log")
            ends = (
                math.ceil(math.log10(dimension.low) - 1e-9),
                math.floor(math.log10(dimension.last) + 1e-9),
            )
            decades = [10.0**power for power in range(ends[0], ends[1] + 1)]
            few = [dimension.low, math.sqrt(dimension.low * dimension.last), dimension.last]
            ticks = decades if len(decades) > 1 else few
            axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlim(dimension.low / 1.2, dimension.last * 1.2)
        else:
            axes.locator_params(axis="x", nbins=5)
            edge = 0.05 * (dimension.last - dimension.low)
            axes.set_xlim(dimension.low - edge, dimension.last + edge)
        return [trial.params[key] for trial in trials]
    names = [shorten(shown(value)) for value in dimension]
    tilt = (
        {"rotation": 25, "ha": "right", "fontsize": "small"}
        if sum(map(len, names)) > _LABEL_LENGTHS
        else {}
    )
    axes.set_xticks(range(len(dimension)), names, parse_math=False, **tilt)
    axes.set_xlim(-0.5, len(dimension) - 0.5)
    drawn = [json.dumps(value) for value in dimension]
    return [drawn.index(trial.params[key]) for trial in trials]


def _value(trial: "FrozenTrial") -> float:
    assert trial.value is not None
    value: float = trial.value
    return value
