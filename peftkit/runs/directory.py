"""A run's directory: its frozen config, what it ran on, what it measured, and how to go on with it."""

import shlex
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from yaml import safe_load

from peftkit.config.reading import load_yaml, to_yaml
from peftkit.errors import ConfigError
from peftkit.files import read_json, write_file, write_json
from peftkit.runs.process import environment, launch_flags, prepare_process
from peftkit.training.progress import Outcome

_OF_AN_ATTEMPT = (
    "before.json",
    "model.json",
    "task.json",
    "metrics.jsonl",
    "evaluation.jsonl",
    "training_rows.jsonl",
)
_MAY_CHANGE = {("train", "resume"), ("train", "trackers")}  # what a resumed run may set anew


class Run:
    """One training run: its directory holds everything that it leaves behind.

    Args:
        config: The recipe's config; has `run_dir`, `seed` and `train`.

    Raises:
        ConfigError: the directory holds a run with another config, or any run where
            ``train.resume`` is "never".
    """

    def __init__(self, config: Any) -> None:
        prepare_process()
        self.config = config
        self.directory = Path(config.run_dir)
        self.is_main = PartialState().is_main_process
        frozen = self.directory / "config.yaml"
        if frozen.exists() and self.is_main:
            if self._has_begun():
                self._check_same(load_yaml(frozen))
            else:
                self._clear()
        if self.is_main:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_file(frozen, to_yaml(config).encode())
            write_json(self.directory / "environment.json", environment())
        PartialState().wait_for_everyone()
        set_seed(config.seed)

    def _has_begun(self) -> bool:
        """Tell whether there is anything to go on from: an attempt that ended before its first
        checkpoint left nothing.
        """
        return (self.directory / "after.json").exists() or any(
            self.directory.glob("checkpoints/*/manifest.json")
        )

    def _clear(self) -> None:
        for name in _OF_AN_ATTEMPT:
            (self.directory / name).unlink(missing_ok=True)

    def _check_same(self, before: dict[str, Any]) -> None:
        if self.config.train.resume == "never":
            raise ConfigError(
                f"run_dir {self.directory} holds a run already; choose another, or set train.resume=auto"
            )
        old, new = _flat(before), _flat(safe_load(to_yaml(self.config)))
        changed = [
            ".".join(k)
            for k in sorted(old.keys() | new.keys())
            if old.get(k) != new.get(k) and k not in _MAY_CHANGE
        ]
        if changed:
            raise ConfigError(
                f"run_dir {self.directory} holds a run whose config differs in {', '.join(changed)}; choose another run_dir, "
                f"or go on with --config {self.directory / 'config.yaml'}"
            )

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def start_trackers(self, accelerator: Accelerator) -> None:
        """Open the trackers that the settings name, with the config's numbers and names."""
        if self.config.train.trackers:
            flat = {
                ".".join(key): value
                for key, value in _flat(load_yaml(self.directory / "config.yaml")).items()
            }
            plain = {
                key: value if isinstance(value, int | float | str | bool) else str(value)
                for key, value in flat.items()
            }
            name = self.directory.name
            options = {
                "wandb": {"dir": str(self.directory), "name": name},
                "trackio": {"name": name},
            }
            accelerator.init_trackers("peftkit", plain, init_kwargs=options)

    def remembered(self, name: str) -> dict[str, Any] | None:
        """Return what `remember` wrote under a name, perhaps before an interruption; None where it
        did not.
        """
        path = self.directory / f"{name}.json"
        return read_json(path, ConfigError) if path.exists() else None

    def remember(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Write a measurement into the directory, so that a resumed run need not repeat it, and
        return it.
        """
        if self.is_main:
            write_json(self.directory / f"{name}.json", value)
        return value

    def exit_if_interrupted(self, outcome: Outcome) -> None:
        """End the program with the signal's exit code and the command that resumes, where a signal
        has stopped the training.
        """
        if outcome.interrupted is not None:
            self.say(
                f"interrupted at step {outcome.step} of {outcome.total_steps}; everything is in {outcome.checkpoint}"
            )
            self.say(f"to go on: {self.resume_command()}")
            raise SystemExit(128 + outcome.interrupted)

    def resume_command(self) -> str:
        """Return the command line that goes on with this run."""
        words = [
            sys.argv[0],
            "--config",
            str(self.directory / "config.yaml"),
            "--train.resume",
            "auto",
        ]
        return f"accelerate launch {shlex.join([*launch_flags(), *words])}"


def _flat(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, (*prefix, key))
            if isinstance(value, dict) and value
            else {(*prefix, key): value}
        )
    return flat
