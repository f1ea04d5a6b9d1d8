"""report.md and best.yaml: what a search has found."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.config.reading import read, to_yaml
from peftkit.files import write_file
from peftkit.metrics.tables import markdown
from peftkit.runs.sweep.figure import draw_sweep
from peftkit.runs.sweep.space import Space, arguments, shown, spelled
from peftkit.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# Optuna's states, in the order of the report.
_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "unfinished",
    "WAITING": "waiting",
}


def write_sweep_report(study: "Study", space: Space, kind: type, base: Path, output: Path) -> Path:
    """Write ``report.md``, and return it.

    Once a trial has finished, ``best.yaml`` and ``sweep.png`` are written too.

    Args:
        study: Its name is the metric's.
        space: What was tried.
        kind: The recipe's config.
        base: The config that the trials change.
        output: The directory of the search.
    """
    metric = study.study_name
    trials = _sorted_trials(study)
    rows = [_row(trial, space, output) for trial in trials if trial.state.name != "WAITING"]
    direction = study.direction.name.lower()
    paragraphs = [f"# {metric}, to {direction}, over {len(rows)} trials"]
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if done:
        best = space.values(done[0].params)
        config: object = read(kind, arguments(base, best, output / "best"))
        write_file(output / "best.yaml", to_yaml(config).encode())
        draw_sweep(study, space, output / "sweep.png")
        paragraphs += [
            f"The best is {metric} {done[0].value:.4g} with {spelled(best)}: trial "
            f"{done[0].number + 1}, whose run is trials/{done[0].user_attrs['directory']}. "
            "best.yaml is the config that trains with these settings once more.",
            f"The best of {len(done)} trials is optimistic, since it is measured on the rows that "
            "it was chosen on. Measure it once more on rows that no trial has seen.",
            "![the metric over the trials, and against each setting](sweep.png)",
        ]
    head = ["trial", metric, *space.dimensions, "", "minutes", "run"]
    paragraphs.append(markdown(head, rows))
    report = output / "report.md"
    write_file(report, ("\n\n".join(paragraphs) + "\n").encode())
    return report


def _sorted_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the finished trials from the best to the worst, then the others by their state."""
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    order = list(_STATES)

    def place(trial: "FrozenTrial") -> tuple[int, float, int]:
        value = math.inf if trial.value is None else sign * trial.value
        return order.index(trial.state.name), value, trial.number

    return sorted(study.trials, key=place)


def _row(trial: "FrozenTrial", space: Space, output: Path) -> list[str]:
    name = trial.user_attrs.get("directory", "")
    row = [str(trial.number + 1), "" if trial.value is None else f"{trial.value:.4g}"]
    if trial.params.keys() == space.dimensions.keys():
        row += map(shown, space.values(trial.params).values())
    else:  # it was stopped before all values were drawn
        row += [""] * len(space.dimensions)
    minutes = _minutes(output / "trials" / name / "metrics.jsonl")
    return [*row, _state_of(trial), minutes, f"trials/{name}"]


def _state_of(trial: "FrozenTrial") -> str:
    state = _STATES[trial.state.name]
    error = trial.user_attrs.get("error") or trial.user_attrs.get("remark")
    return f"{state}: {error}" if error else state


def _minutes(path: Path) -> str:
    steps = [line for line in read_metrics(path) if line["kind"] == "train"]
    return f"{steps[-1]['seconds'] / 60:.1f}" if steps else ""
