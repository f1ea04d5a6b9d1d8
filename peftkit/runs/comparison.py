"""Runs side by side: what they scored, what they cost, and in which settings they differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.config.flattening import flatten
from peftkit.config.reading import load_yaml
from peftkit.errors import ConfigError
from peftkit.files import read_json
from peftkit.metrics import lower_is_better
from peftkit.metrics.tables import markdown
from peftkit.runs.drawing import COLORS, finish, new_figure, save
from peftkit.training.metrics_log import read_metrics

_LINE_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP*X"


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What a run's directory says about it. What is unknown is None or empty."""

    name: str
    directory: str
    finished: bool
    method: str | None
    trained_parameters: int | None
    steps: int
    minutes: float | None
    peak_gib: float | None
    metrics: dict[str, float]
    """Those after training; of an unfinished run, those of its last evaluation."""
    curve: list[dict[str, float]]
    """The metrics before training, as step 0, and at each evaluation; "step" is one of the keys."""
    settings: dict[str, Any]
    """The frozen config, with dotted keys."""


def compare(
    directories: Sequence[str | Path], output: str | Path | None = None, *, metric: str = "loss"
) -> str:
    """Return a Markdown report on several runs: their metrics, and the settings that differ.

    The best value of each metric is in bold.

    Args:
        directories: Those of the runs, of any recipes, finished or not.
        output: A Markdown file to write too, with a picture of `metric` over the steps beside it,
            as a PNG.
        metric: What to draw.

    Raises:
        ConfigError: a directory holds no run, or none of the runs has the metric to draw.
    """
    runs = read_runs(directories)
    parts = [_table_of_runs(runs)]
    settings = _settings_that_differ(runs)
    if settings:
        head = ["", *(run.name for run in runs)]
        parts += ["## Settings that differ", markdown(head, settings)]
    if output is not None:
        path = Path(output)
        picture = path.with_suffix(".png")
        _draw_curves(runs, metric, picture)
        parts.append(f"![{metric} over steps]({picture.name})")
        path.write_text("\n\n".join(parts) + "\n", "utf-8")
    return "\n\n".join(parts)


def read_runs(directories: Sequence[str | Path]) -> list[RunSummary]:
    """Return the runs of several directories; those of the same name are named by their path.

    Raises:
        ConfigError: a directory holds no run, or a file in it cannot be read.
    """
    runs = [read_run(directory) for directory in directories]
    names = [run.name for run in runs]
    for number, run in enumerate(runs):
        if names.count(run.name) > 1:
            runs[number] = dataclasses.replace(run, name=run.directory)
    return runs


def read_run(directory: str | Path) -> RunSummary:
    """Return what a run's directory says about it, finished or not.

    Raises:
        ConfigError: the directory holds no run, or a file in it cannot be read.
    """
    path = Path(directory)
    if not (path / "config.yaml").exists():
        raise ConfigError(f"{path} holds no run: there is no {path / 'config.yaml'}")
    settings = flatten(load_yaml(path / "config.yaml"))
    attached = _read_attached(path / "model.json")
    method = attached.get("method") or settings.get("adapter.method")
    lines = read_metrics(path / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    steps = max([int(line["step"]) for line in train], default=0)
    return RunSummary(
        name=path.resolve().name,
        directory=str(path),
        finished=(path / "after.json").exists(),
        method=method.lower() if method else None,
        trained_parameters=attached.get("trained_parameters"),
        steps=steps,
        minutes=train[-1]["seconds"] / 60 if train else None,
        peak_gib=_peak_gib(train),
        metrics=_metrics_after(path) or _last_evaluation(lines),
        curve=_curve(path, lines, steps),
        settings=settings,
    )


def _read_attached(path: Path) -> dict[str, Any]:
    """Return what the run wrote down about its adapter; nothing before it was attached."""
    if not path.exists():
        return {}
    attached: dict[str, Any] = read_json(path, ConfigError).get("attach", {})
    return attached


def _curve(path: Path, lines: Sequence[Mapping[str, Any]], steps: int) -> list[dict[str, float]]:
    """Return the metrics over the steps; where no evaluation was made, before and after."""
    curve: list[dict[str, float]] = []
    before = _metrics_in(path / "before.json")
    if before:
        curve.append({"step": 0, **before})
    evaluations = [_numbers(line) for line in lines if line["kind"] == "evaluation"]
    after = _metrics_after(path)
    if evaluations:
        curve += evaluations
    elif after:
        curve.append({"step": steps, **after})
    return curve


def _peak_gib(train: Sequence[Mapping[str, Any]]) -> float | None:
    peaks = []
    for line in train:
        peak = line.get("memory_gib")
        if peak is not None:
            peaks.append(peak)
    return max(peaks, default=None)


def _last_evaluation(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    for line in reversed(lines):
        if line["kind"] == "evaluation":
            metrics = _numbers(line)
            del metrics["step"]
            return metrics
    return {}


def _metrics_after(path: Path) -> dict[str, float]:
    return _metrics_in(path / "after.json")


def _metrics_in(path: Path) -> dict[str, float]:
    return _numbers(read_json(path, ConfigError)["metrics"]) if path.exists() else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _table_of_runs(runs: Sequence[RunSummary]) -> str:
    metrics: dict[str, None] = {}  # the names, each once
    for run in runs:
        metrics |= dict.fromkeys(run.metrics)
    best = {name: _best(runs, name) for name in metrics}
    rows = [_row(run, best) for run in runs]
    head = ["run", "method", "trained parameters", *metrics, "steps", "minutes", "peak GiB"]
    return markdown(head, rows)


def _row(run: RunSummary, best: Mapping[str, float | None]) -> list[str]:
    """Return a run's row; `best` has the best value of each metric."""
    row = [
        run.name if run.finished else f"{run.name} (unfinished)",
        run.method or "",
        _spelled(run.trained_parameters, ",d"),
    ]
    for name, best_value in best.items():
        value = run.metrics.get(name)
        text = _spelled(value, ".4g")
        is_best = run.finished and value is not None and value == best_value
        row.append(f"**{text}**" if is_best else text)
    return [*row, str(run.steps), _spelled(run.minutes, ".1f"), _spelled(run.peak_gib, ".2f")]


def _best(runs: Sequence[RunSummary], metric: str) -> float | None:
    """Return the best value of the finished runs, or None if they all have the same."""
    values = [run.metrics[metric] for run in runs if run.finished and metric in run.metrics]
    if len(set(values)) < 2:
        return None
    return min(values) if lower_is_better(metric) else max(values)


def _spelled(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _settings_that_differ(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return a row for each setting that the runs do not share: its key, and a value a run."""
    keys: dict[str, None] = {}
    for run in runs:
        keys |= dict.fromkeys(run.settings)
    keys.pop("run_dir", None)
    rows = []
    for key in keys:
        values = [str(run.settings.get(key, "")) for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _draw_curves(runs: Sequence[RunSummary], metric: str, path: Path) -> None:
    figure = new_figure(8, 4.5 + 0.12 * len(runs))
    axes = figure.subplots()
    for number, run in enumerate(runs):
        measured = [point for point in run.curve if metric in point]
        if not measured:
            continue
        axes.plot(
            [point["step"] for point in measured],
            [point[metric] for point in measured],
            color=COLORS[number % 7],
            linestyle=_LINE_STYLES[number // 7 % 4],
            marker=_MARKERS[number % 8],
            markersize=4,
            label=run.name,
        )
    if not axes.lines:
        known = ", ".join(_drawable(runs)) or "nothing measured yet"
        raise ConfigError(f"no run has {metric!r} to draw; there is {known}")
    finish(axes, "step", f"{metric} on held-out rows")
    figure.legend(loc="outside lower center", ncols=2 if len(runs) > 3 else 1, fontsize="small")
    save(figure, path)


def _drawable(runs: Sequence[RunSummary]) -> list[str]:
    """Return the names of the metrics that some run has over its steps."""
    names: dict[str, None] = {}
    for run in runs:
        for point in run.curve:
            names |= dict.fromkeys(point)
    names.pop("step", None)
    return list(names)
