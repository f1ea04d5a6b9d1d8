"""The search: Optuna proposes trials, each is run as a process, and Optuna is told the outcome.

Its database lets an interrupted search go on.
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
from peftkit.runs.sweep.space import Range, Space, arguments, name_of, read_space, spelled

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

_DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class SweepSettings:
    """How to search.

    Attributes:
        metric: One of ``after.json``.
        direction: None maximises the metric unless its name says that lower is better.
        sampler: How the next trial is chosen.
        pruner: Which trials are stopped early.
        trials: How many in all, with those of an interrupted search. None is every point of a
            grid, and 20 otherwise.
        timeout: No trial begins after that many minutes.
        seed: Seed of the sampler.
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
    """Search for the settings with the best metric on held-out rows, and return the report.

    Every trial is a run in ``output/trials``, and a process. The search is in ``output/sweep.db``;
    the same call goes on with it, and with the trials that were running. A trial that fails is
    recorded, and the next begins.

    Args:
        command: Starts the recipe, whose arguments are added to it.
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
    _check_config(read(kind, arguments(base, points.first_values(), output)), settings)
    search = _Search(command, base, points, output, settings)
    search.open()
    search.check_same()
    search.put_back_running()
    wanted = settings.trials or _DEFAULT_TRIALS
    if grid is not None:
        search.put_in_queue(grid)
        wanted = min(settings.trials or len(grid), len(grid))
    try:
        search.run(wanted)
    finally:
        report = write_sweep_report(search.study, points, kind, base, output)
    search.check_any_succeeded()
    return report


def _check_config(config: Any, settings: SweepSettings) -> None:
    if settings.trials is not None and settings.trials < 1:
        raise ConfigError(f"trials is {settings.trials}; it must be at least 1")
    if settings.pruner != "none" and config.train.evaluate_every is None:
        raise ConfigError(
            f"--pruner {settings.pruner} stops trials by their evaluations: set "
            "train.evaluate_every in the base config"
        )
    if config.data.evaluation is None:
        raise ConfigError(
            "settings are chosen on held-out rows: set data.evaluation in the base config"
        )


class _Search:
    """An Optuna study, and what its trials need to be run."""

    storage: "RDBStorage"
    study: "Study"

    def __init__(
        self,
        command: Sequence[str],
        base: Path,
        space: Space,
        output: Path,
        settings: SweepSettings,
    ) -> None:
        self.command = list(command)
        self.base = base
        self.space = space
        self.output = output
        self.settings = settings

    def open(self) -> None:
        """Open the study in the output directory, or make it.

        Raises:
            ConfigError: Optuna is not installed, or the study has the other direction.
        """
        (self.output / "trials").mkdir(parents=True, exist_ok=True)
        self.storage, self.study = _open_study(self.output / "sweep.db", self.settings)

    def check_same(self) -> None:
        """Check that the directory does not hold another search.

        Raises:
            ConfigError: command, base config or space differ.
        """
        path = self.output / "sweep.json"
        described = {
            "command": self.command[1:],  # without the Python interpreter
            "config": load_yaml(self.base),
            "space": self._described_space(),
        }
        here = json.loads(json.dumps(described, default=str))
        if path.exists():
            there = read_json(path, ConfigError)
            different = [key for key in here if there.get(key) != here[key]]
            if different:
                verb = "differs" if len(different) == 1 else "differ"
                raise ConfigError(
                    f"{self.output} holds a sweep whose {' and '.join(different)} {verb}; choose "
                    "another --output"
                )
        write_json(path, here)

    def _described_space(self) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for key, dimension in self.space.dimensions.items():
            described[key] = vars(dimension) if isinstance(dimension, Range) else dimension
        return described

    def put_in_queue(self, points: Sequence[Mapping[str, str]]) -> None:
        """Let points be tried, in this order, unless they have been."""
        for point in points:
            self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def put_back_running(self) -> None:
        """Put trials that a crash has cut off back into the queue.

        Raises:
            ConfigError: the process of one still runs.
        """
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if _is_running(trial):
                raise ConfigError(
                    f"trial {trial.number} of {self.output} still runs, as process "
                    f"{trial.user_attrs['process']}; wait for it, or end it"
                )
            self._put_back(trial.number)

    def _put_back(self, number: int) -> None:
        from optuna.trial import TrialState

        storage = self.storage
        study = storage.get_study_id_from_name(self.study.study_name)
        trial = storage.get_trial_id_from_study_id_trial_number(study, number)
        storage.set_trial_state_values(trial, TrialState.WAITING)

    def run(self, wanted: int) -> None:
        """Run trials until so many have ended, or the time is up."""
        began = time.monotonic()
        while True:
            ended = sum(trial.state.is_finished() for trial in self.study.trials)
            if ended >= wanted:
                return
            if self._is_time_up(began):
                _say(f"the time is up after {ended} of {wanted} trials")
                return
            trial = self.study.ask(self.space.distributions())
            try:
                self._run_trial(trial, wanted)
            except BaseException:
                self._put_back(trial.number)
                raise

    def _is_time_up(self, began: float) -> bool:
        timeout = self.settings.timeout
        return timeout is not None and time.monotonic() - began > 60 * timeout

    def _run_trial(self, trial: "Trial", wanted: int) -> None:
        from optuna.trial import TrialState

        values = self.space.values(trial.params)
        directory = self.output / "trials" / name_of(values)
        trial.set_user_attr("directory", directory.name)
        _say(f"trial {trial.number + 1} of {wanted}: {spelled(values)} ({directory})")
        error, was_stopped = self._earlier_error(trial), False
        if error is None and not (directory / "after.json").exists():
            error, was_stopped = self._train(trial, values, directory)
        if error is not None:
            trial.set_user_attr("error", error)
            self.study.tell(trial, state=TrialState.FAIL)
            _say(f"  failed: {error}")
        elif was_stopped:
            self.study.tell(trial, state=TrialState.PRUNED)
            _say("  stopped early")
        else:
            self._finish(trial, directory)

    def _earlier_error(self, trial: "Trial") -> str | None:
        """Return the error of an earlier trial of the same values: it need not fail again."""
        for other in self.study.trials:
            if other.params == trial.params and "error" in other.user_attrs:
                return str(other.user_attrs["error"])
        return None

    def _train(
        self, trial: "Trial", values: Mapping[str, Any], directory: Path
    ) -> tuple[str | None, bool]:
        """Run the recipe; return its last error if it failed, and whether it was stopped early."""

        def is_hopeless(evaluations: Sequence[Mapping[str, Any]]) -> bool:
            """Ask Optuna, after a new evaluation, whether the other trials were better by then."""
            return self._report(trial, evaluations) and trial.should_prune()

        log = directory.with_suffix(".log")
        code = process.run(
            [*self.command, *arguments(self.base, values, directory)],
            directory,
            log,
            is_hopeless=is_hopeless,
            started=lambda number: trial.set_user_attr("process", number),
        )
        if (directory / "after.json").exists():
            self._report(trial, process.read_evaluations(directory))
            if code:  # it failed after it had been measured
                trial.set_user_attr("remark", process.last_error(log))
            return None, False
        if code is None:
            return None, True
        return process.last_error(log), False

    def _report(self, trial: "Trial", evaluations: Sequence[Mapping[str, Any]]) -> bool:
        """Tell Optuna about the evaluations, by their number; return whether one was new."""
        metric, pruner = self.settings.metric, self.settings.pruner
        if pruner == "none":
            return False
        known = self.study.trials[trial.number].intermediate_values
        for number, line in enumerate(evaluations, start=1):
            if metric not in line:
                there = ", ".join(sorted(line.keys() - {"step", "kind"}))
                raise ConfigError(
                    f"--pruner {pruner} needs {metric} in the evaluations, which hold {there}; "
                    "choose one of them as --metric, or --pruner none"
                )
            if number not in known:
                trial.report(line[metric], number)
        return len(evaluations) > len(known)

    def _finish(self, trial: "Trial", directory: Path) -> None:
        value = self._value(directory)
        self.study.tell(trial, value)
        best = self.study.best_trial
        text = (
            f"  {self.settings.metric} {value:.4g}, the best so far is {best.value:.4g}, of trial "
        )
        text += str(best.number + 1)
        remark = trial.user_attrs.get("remark")
        if remark is not None:
            text += f"; its run ended after that with {remark}"
        _say(text)

    def _value(self, directory: Path) -> float:
        """Return the metric of a finished run."""
        path, name = directory / "after.json", self.settings.metric
        metrics = read_json(path, ConfigError)["metrics"]
        if name not in metrics:
            raise ConfigError(
                f"{path} has no metric {name!r}; it has {', '.join(metrics)}"
                f"{nearest(name, metrics)}"
            )
        value = float(metrics[name])
        if not math.isfinite(value):
            raise ConfigError(f"{path}: {name} is {value}")
        return value

    def check_any_succeeded(self) -> None:
        """Check that some trial has a value.

        Raises:
            PeftkitError: none has; names the last error.
        """
        last_error = "no trial was run"
        for trial in self.study.trials:
            if trial.value is not None:
                return
            last_error = trial.user_attrs.get("error", last_error)
        raise PeftkitError(f"every trial failed, the last with: {last_error}")


def _is_running(trial: "FrozenTrial") -> bool:
    """Return whether the process of a trial is still there; its number may be another's by now."""
    number = trial.user_attrs.get("process")
    if number is None:
        return False
    try:
        words = psutil.Process(number).cmdline()
    except psutil.Error:
        return False
    name = str(trial.user_attrs["directory"])
    return any(name in word for word in words)


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
    direction = settings.direction
    if direction is None:
        direction = "minimize" if lower_is_better(settings.metric) else "maximize"
    study = optuna.create_study(
        storage=storage, study_name=settings.metric, direction=direction, load_if_exists=True
    )
    found = study.direction.name.lower()
    if found != direction:
        raise ConfigError(f"{path} holds a search that is to {found} {settings.metric}")
    seed = settings.seed + len(study.trials)  # a search that goes on must not draw the same again
    if settings.sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    else:  # a grid's points wait in the queue: for them, the sampler draws nothing
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }
    study.pruner = pruners[settings.pruner]()
    return storage, study


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
