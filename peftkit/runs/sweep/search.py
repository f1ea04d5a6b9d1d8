"""The search: trials are asked for, run, stopped early, and told to Optuna, whose database lets an
interrupted search go on.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from peftkit.config.reading import load_yaml, read
from peftkit.errors import ConfigError, PeftkitError, nearest
from peftkit.files import read_json, write_json
from peftkit.metrics import lower_is_better
from peftkit.runs.sweep import process
from peftkit.runs.sweep.report import write_sweep_report
from peftkit.runs.sweep.space import Space, name_of, read_space, spelled, words

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage

_DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class SweepSettings:
    """How to search.

    `metric` is one of ``after.json``; `direction` None maximises it unless its name says that lower
    is better. `trials` counts all, those of an interrupted search too; None is every point of a
    grid, and 20 else. No trial begins after `timeout` minutes.
    """

    metric: str = "loss"
    direction: Literal["maximize", "minimize"] | None = None
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"
    trials: int | None = None
    timeout: float | None = None
    seed: int = 0


def sweep(
    command: Sequence[str],
    kind: type,
    base: Path,
    space: Path,
    output: Path,
    settings: SweepSettings | None = None,
) -> Path:
    """Search for the settings that give a recipe the best metric on held-out rows, and return the
    report.

    Every trial is a run of its own in ``output/trials``, in a process of its own. The search stands
    in ``output/sweep.db``; the same call goes on with it, and with the trials that were running. A
    trial that fails is recorded, and the next begins.

    Args:
        command: What starts the recipe; the arguments of the recipe come behind it.
        kind: The recipe's config.
        base: The config that the trials change.
        space: A YAML file with the keys to try, see `peftkit.runs.sweep.space.read_space`.
        output: Takes ``report.md``, ``sweep.png``, ``best.yaml``, the database and the trials.
        settings: How to search.

    Raises:
        ConfigError: the space does not fit the recipe, `output` holds another search, there are no
            held-out rows, or ``after.json`` has no such metric.
        PeftkitError: every trial failed.
        KeyboardInterrupt: the running trial has saved its state and waits in the queue.
    """
    settings = settings or SweepSettings()
    points = read_space(space)
    grid = points.grid() if settings.sampler == "grid" else None
    points.check(kind, base, output / "trials" / "name")
    first = {
        key: each[0] if isinstance(each, list) else each.low
        for key, each in points.dimensions.items()
    }
    _check_config(read(kind, words(base, first, output)), settings)
    search = _Search(command, kind, base, points, output, settings)
    search.check_same()
    search.put_back_running()
    if grid is not None:
        for point in grid:
            search.study.enqueue_trial(point, skip_if_exists=True)
    wanted = settings.trials or (_DEFAULT_TRIALS if grid is None else len(grid))
    try:
        search.run(wanted if grid is None else min(wanted, len(grid)))
    finally:
        report = write_sweep_report(search.study, points, kind, base, output)
    if not any(trial.value is not None for trial in search.study.trials):
        errors = [
            trial.user_attrs["error"]
            for trial in search.study.trials
            if "error" in trial.user_attrs
        ]
        raise PeftkitError(
            f"every trial failed, the last with: {errors[-1] if errors else 'no trial was run'}"
        )
    return report


def _check_config(config: Any, settings: SweepSettings) -> None:
    if settings.trials is not None and settings.trials < 1:
        raise ConfigError(f"trials is {settings.trials}; it must be at least 1")
    if settings.pruner != "none" and config.train.evaluate_every is None:
        raise ConfigError(
            f"--pruner {settings.pruner} stops trials by their evaluations: set train.evaluate_every in the base config"
        )
    if config.data.evaluation is None:
        raise ConfigError(
            "settings are chosen on held-out rows: set data.evaluation in the base config"
        )


class _Search:
    """A study with what is needed to run its trials."""

    def __init__(
        self,
        command: Sequence[str],
        kind: type,
        base: Path,
        space: Space,
        output: Path,
        settings: SweepSettings,
    ) -> None:
        self.command, self.kind, self.base, self.space = list(command), kind, base, space
        self.output, self.settings = output, settings
        (output / "trials").mkdir(parents=True, exist_ok=True)
        self.storage, self.study = _open_study(output / "sweep.db", settings)
        self._waiting: Any = None

    def check_same(self) -> None:
        """Refuse a directory that holds the search of something else.

        Raises:
            ConfigError: command, base config or space differ.
        """
        path = self.output / "sweep.json"
        spaces = {
            key: each if isinstance(each, list) else vars(each)
            for key, each in self.space.dimensions.items()
        }
        described = {"command": self.command[1:], "config": load_yaml(self.base), "space": spaces}
        here = json.loads(json.dumps(described, default=str))
        if path.exists():
            there = read_json(path, ConfigError)
            differ = [key for key, value in here.items() if there.get(key) != value]
            if differ:
                raise ConfigError(
                    f"{self.output} holds a sweep whose {' and '.join(differ)} differ; choose another --output"
                )
        write_json(path, here)

    def put_back_running(self) -> None:
        """Put trials that a crash has cut into the queue again.

        Raises:
            ConfigError: the process of one still runs.
        """
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if self._still_runs(trial):
                raise ConfigError(
                    f"trial {trial.number} of {self.output} still runs, as process {trial.user_attrs['process']}; wait for "
                    "it, or end it"
                )
            self._put_back(trial.number)

    def _still_runs(self, trial: Any) -> bool:
        number = trial.user_attrs.get("process")
        try:
            line = psutil.Process(number).cmdline() if number is not None else []
        except psutil.Error:
            return False
        return any(str(trial.user_attrs["directory"]) in word for word in line)

    def _put_back(self, number: int) -> None:
        from optuna.trial import TrialState

        study = self.storage.get_study_id_from_name(self.study.study_name)
        self.storage.set_trial_state_values(
            self.storage.get_trial_id_from_study_id_trial_number(study, number), TrialState.WAITING
        )

    def run(self, wanted: int) -> None:
        """Run trials until so many have ended, or the time is up."""
        began = time.monotonic()
        while (ended := sum(trial.state.is_finished() for trial in self.study.trials)) < wanted:
            if (
                self.settings.timeout is not None
                and time.monotonic() - began > 60 * self.settings.timeout
            ):
                _say(f"the time is up after {ended} of {wanted} trials")
                return
            trial = self.study.ask(self.space.distributions())
            try:
                self._run_trial(trial, wanted)
            except BaseException:
                self._put_back(trial.number)
                raise

    def _run_trial(self, trial: "Trial", wanted: int) -> None:
        from optuna.trial import TrialState

        values = self.space.values(trial.params)
        directory = self.output / "trials" / name_of(values)
        trial.set_user_attr("directory", directory.name)
        _say(f"trial {trial.number + 1} of {wanted}: {spelled(values)} ({directory})")
        error, pruned = self._twin(trial), False
        if error is None and not (directory / "after.json").exists():
            error, pruned = self._train(trial, values, directory)
        if error is None and not pruned:
            value = self._value(directory)
            self.study.tell(trial, value)
            remark = trial.user_attrs.get("remark")
            after = f"; its run ended after that with {remark}" if remark else ""
            _say(f"  {self.settings.metric} {value:.4g}, {self._best()}{after}")
        elif error is None:
            self.study.tell(trial, state=TrialState.PRUNED)
            _say("  stopped early")
        else:
            trial.set_user_attr("error", error)
            self.study.tell(trial, state=TrialState.FAIL)
            _say(f"  failed: {error}")

    def _twin(self, trial: "Trial") -> str | None:
        """Return the error of an earlier trial of the same values, if one has failed: it need not
        fail again.
        """
        return next(
            (str(other.user_attrs["error"]) for other in self.study.trials
             if other.params == trial.params and "error" in other.user_attrs), None
        )  # fmt: skip

    def _train(
        self, trial: "Trial", values: Mapping[str, Any], directory: Path
    ) -> tuple[str | None, bool]:
        """Run the recipe; return its last error, if it failed, and whether it was stopped early."""
        log = directory.with_suffix(".log")
        code = process.run(
            [*self.command, *words(self.base, values, directory)],
            directory,
            log,
            is_hopeless=lambda evaluations: self._is_hopeless(trial, evaluations),
            started=lambda number: trial.set_user_attr("process", number),
        )
        if (directory / "after.json").exists():
            self._report(trial, process.evaluations(directory))
            if code:
                trial.set_user_attr("remark", process.last_error(log))
            return None, False
        return (None, True) if code is None else (process.last_error(log), False)

    def _is_hopeless(self, trial: "Trial", evaluations: Sequence[Mapping[str, Any]]) -> bool:
        """Ask Optuna whether the other trials were better at this point, where there is a new
        evaluation.
        """
        return self._report(trial, evaluations) and trial.should_prune()

    def _report(self, trial: "Trial", evaluations: Sequence[Mapping[str, Any]]) -> bool:
        """Tell Optuna of the evaluations, by their number, and return whether one was new."""
        metric, pruner = self.settings.metric, self.settings.pruner
        if pruner == "none":
            return False
        known = self.study.trials[trial.number].intermediate_values
        for number, line in enumerate(evaluations, start=1):
            if metric not in line:
                raise ConfigError(
                    f"--pruner {pruner} needs {metric} in the evaluations, which hold "
                    f"{', '.join(sorted(line.keys() - {'step', 'kind'}))}; choose one of them as --metric, or --pruner none"
                )
            if number not in known:
                trial.report(line[metric], number)
        return len(evaluations) > len(known)

    def _value(self, directory: Path) -> float:
        metrics = read_json(directory / "after.json", ConfigError)["metrics"]
        name = self.settings.metric
        if name not in metrics:
            raise ConfigError(
                f"{directory / 'after.json'} has no metric {name!r}; it has {', '.join(metrics)}{nearest(name, metrics)}"
            )
        value = float(metrics[name])
        if not math.isfinite(value):
            raise ConfigError(f"{directory / 'after.json'}: {name} is {value}")
        return value

    def _best(self) -> str:
        best = self.study.best_trial
        return f"the best so far is {best.value:.4g}, of trial {best.number + 1}"


def _open_study(path: Path, settings: SweepSettings) -> "tuple[RDBStorage, Study]":
    """Open the database and the study of the metric in it, or make them.

    Raises:
        ConfigError: Optuna is not installed, or the study has the other direction.
    """
    try:
        import optuna
    except ImportError as problem:
        raise ConfigError("a sweep needs Optuna: pip install 'peftkit[sweep]'") from problem
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    direction = settings.direction or (
        "minimize" if lower_is_better(settings.metric) else "maximize"
    )
    study = optuna.create_study(
        storage=storage, study_name=settings.metric, direction=direction, load_if_exists=True
    )
    if study.direction.name.lower() != direction:
        raise ConfigError(
            f"{path} holds a search that is to {study.direction.name.lower()} {settings.metric}"
        )
    seed = settings.seed + len(
        study.trials
    )  # a search that goes on is not to draw the same values again
    study.sampler = (
        optuna.samplers.TPESampler(seed=seed)
        if settings.sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }
    study.pruner = pruners[settings.pruner]()
    return storage, study


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
