"""Runs side by side: what they scored, what they cost, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftkit.config.flattening import flatten
from peftkit.config.reading import load_yaml
from peftkit.errors import ConfigError
from peftkit.files import read_json
from peftkit.metrics import lower_is_better
from peftkit.metrics.tables import markdown
from peftkit.runs.figures import COLORS, finish, new_figure, save
from peftkit.training.metrics_log import read_metrics

_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class RunSummary:
    """What a run's directory says of it. What is not known, yet or at all, is None or empty."""

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


def read_run(directory: str | Path) -> RunSummary:
    """Return what a run's directory says of it, finished or not.

    Raises:
        ConfigError: the directory holds no run, or a file in it cannot be read.
    """
    path = Path(directory)
    if not (path / "config.yaml").exists():
        raise ConfigError(f"{path} holds no run: there is no {path / 'config.yaml'}")
    lines = read_metrics(path / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = [_numbers(line) for line in lines if line["kind"] == "evaluation"]
    before, after = (_metrics(path / f"{name}.json") for name in ("before", "after"))
    last = (
        {key: value for key, value in evaluations[-1].items() if key != "step"}
        if evaluations
        else {}
    )
    model = read_json(path / "model.json", ConfigError) if (path / "model.json").exists() else {}
    attach = model.get("attach", {})
    settings = flatten(load_yaml(path / "config.yaml"))
    method = attach.get("method") or settings.get("adapter.method")
    steps = max([int(line["step"]) for line in train], default=0)
    curve = [{"step": 0, **before}] if before else []
    curve += evaluations or ([{"step": steps, **after}] if after else [])
    return RunSummary(
        name=path.resolve().name,
        directory=str(path),
        finished=(path / "after.json").exists(),
        method=method.lower() if method else None,
        trained_parameters=attach.get("trained_parameters"),
        steps=steps,
        minutes=train[-1]["seconds"] / 60 if train else None,
        peak_gib=max(
            (line["memory_gib"] for line in train if line.get("memory_gib") is not None),
            default=None,
        ),
        metrics=after or last,
        curve=curve,
        settings=settings,
    )


def compare(
    directories: Sequence[str | Path], output: str | Path | None = None, *, metric: str = "loss"
) -> str:
    """Return a Markdown report on several runs: a table with the best metrics in bold, and the
    settings that differ.

    Args:
        directories: Those of the runs, of any recipes, finished or not.
        output: A Markdown file to write too; a picture of `metric` over the steps is put beside it,
            as a PNG.
        metric: What to draw.

    Raises:
        ConfigError: a directory holds no run, or none of the runs has the metric to draw.
    """
    runs = summaries(directories)
    parts = [_table_of_runs(runs), *_table_of_settings(runs)]
    if output is not None:
        path = Path(output)
        picture = path.with_suffix(".png")
        _draw_curves(runs, metric, picture)
        parts.append(f"![{metric} over steps]({picture.name})")
        path.write_text("\n\n".join(parts) + "\n", "utf-8")
    return "\n\n".join(parts)


def summaries(directories: Sequence[str | Path]) -> list[RunSummary]:
    """Return the runs of several directories, with names that tell them apart."""
    runs = [read_run(directory) for directory in directories]
    names = [run.name for run in runs]
    return [
        RunSummary(**(asdict(run) | {"name": run.directory})) if names.count(run.name) > 1 else run
        for run in runs
    ]


def _table_of_runs(runs: Sequence[RunSummary]) -> str:
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    best = {name: _best(runs, name) for name in metrics}
    rows = [
        [
            run.name + ("" if run.finished else " (unfinished)"),
            run.method or "",
            "" if run.trained_parameters is None else f"{run.trained_parameters:,}",
            *(_number(run.metrics.get(name), is_best=run.finished and run.metrics.get(name) == best[name])
              for name in metrics),
            str(run.steps),
            "" if run.minutes is None else f"{run.minutes:.1f}",
            "" if run.peak_gib is None else f"{run.peak_gib:.2f}",
        ]
        for run in runs
    ]  # fmt: skip
    return markdown(
        ["run", "method", "trained parameters", *metrics, "steps", "minutes", "peak GiB"], rows
    )


def _best(runs: Sequence[RunSummary], metric: str) -> float | None:
    """Return the best value among the finished runs, if they do not all have the same."""
    values = [run.metrics[metric] for run in runs if run.finished and metric in run.metrics]
    if len(set(values)) < 2:
        return None
    return min(values) if lower_is_better(metric) else max(values)


def _number(value: float | None, *, is_best: bool) -> str:
    text = "" if value is None else f"{value:.4g}"
    return f"**{text}**" if text and is_best else text


def _table_of_settings(runs: Sequence[RunSummary]) -> list[str]:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings if key != "run_dir"))
    texts = {
        key: [str(run.settings[key]) if key in run.settings else "" for run in runs] for key in keys
    }
    rows = [[key, *values] for key, values in texts.items() if len(set(values)) > 1]
    if not rows:
        return []
    return ["## Settings that differ", markdown(["", *(run.name for run in runs)], rows)]


def _draw_curves(runs: Sequence[RunSummary], metric: str, path: Path) -> None:
    figure = new_figure(8, 4.5 + 0.12 * len(runs))
    axes = figure.subplots()
    for number, run in enumerate(runs):
        curve = [(point["step"], point[metric]) for point in run.curve if metric in point]
        if curve:
            style = {
                "color": COLORS[number % 7],
                "linestyle": _STYLES[number // 7 % 4],
                "marker": _MARKERS[number % 8],
            }
            axes.plot(*zip(*curve, strict=True), **style, markersize=4, label=run.name)
    if not axes.lines:
        known = dict.fromkeys(
            name for run in runs for point in run.curve for name in point if name != "step"
        )
        raise ConfigError(
            f"no run has {metric!r} to draw; there is {', '.join(known) or 'nothing measured yet'}"
        )
    finish(axes, "step", f"{metric} on held-out rows")
    figure.legend(loc="outside lower center", ncols=2 if len(runs) > 3 else 1, fontsize="small")
    save(figure, path)


def _metrics(path: Path) -> dict[str, float]:
    return _numbers(read_json(path, ConfigError)["metrics"]) if path.exists() else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
