"""A run's directory: its frozen config, what it ran on, what it measured, and how to resume it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from peftkit.config.flattening import flatten
from peftkit.config.reading import load_yaml, to_yaml
from peftkit.errors import ConfigError
from peftkit.files import read_json, write_file, write_json
from peftkit.runs.frozen_config import CONFIG, REPORT, changed_keys
from peftkit.runs.launch_command import typed_command
from peftkit.runs.process import environment
from peftkit.training.early_stopping import Outcome

_FILES_OF_AN_ATTEMPT = (
    "before.json",
    "model.json",
    "task.json",
    "rows.json",
    "metrics.jsonl",
    "evaluation.jsonl",
    "augmented_rows.jsonl",
    "streamed_rows.jsonl",
    "training_rows.jsonl",
)


class Run:
    """One training run. Its directory holds everything that it leaves behind.

    Args:
        config: The recipe's config, with `run_dir` and `train`.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.directory = Path(config.run_dir)
        self.config_file = self.directory / CONFIG

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(PartialState().is_main_process)

    def begin(self, process_changes: Sequence[str] = ()) -> None:
        """Take the directory: write the config and the environment into it.

        What an attempt left that ended before its first checkpoint is removed.

        Args:
            process_changes: What `prepare_process` set.

        Raises:
            ConfigError: the directory holds a run with another config, or any run where
                ``train.resume`` is "never".
        """
        if self.is_main:
            if self._can_be_resumed():
                self._check_same_config()
            elif self.config_file.exists():
                self._remove_attempt()
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / REPORT).unlink(missing_ok=True)  # it says that a run is finished
            write_file(self.config_file, to_yaml(self.config).encode())
            described = environment() | {"process": list(process_changes)}
            write_json(self.directory / "environment.json", described)
        PartialState().wait_for_everyone()

    def _can_be_resumed(self) -> bool:
        """Return whether an earlier run reached a checkpoint or its end."""
        if not self.config_file.exists():
            return False
        if (self.directory / "after.json").exists():
            return True
        return any(self.directory.glob("checkpoints/*/manifest.json"))

    def _remove_attempt(self) -> None:
        for name in _FILES_OF_AN_ATTEMPT:
            (self.directory / name).unlink(missing_ok=True)

    def _check_same_config(self) -> None:
        if self.config.train.resume == "never":
            raise ConfigError(
                f"run_dir {self.directory} holds a run already; choose another, or set "
                "train.resume=auto"
            )
        changed = changed_keys(self.config, self.config_file)
        if changed:
            raise ConfigError(
                f"run_dir {self.directory} holds a run whose config differs in "
                f"{', '.join(changed)}; choose another run_dir, or resume that run with "
                f"--config {self.config_file}"
            )

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def start_trackers(self, accelerator: Accelerator) -> None:
        """Open the trackers that the config names, and give them the config."""
        if not self.config.train.trackers:
            return
        settings = flatten(load_yaml(self.config_file))
        for key, value in settings.items():
            if not isinstance(value, int | float | str | bool):
                settings[key] = str(value)  # trackers take plain values only
        name = self.directory.name
        options = {"wandb": {"dir": str(self.directory), "name": name}, "trackio": {"name": name}}
        accelerator.init_trackers("peftkit", settings, init_kwargs=options)

    def remembered(self, name: str) -> dict[str, Any] | None:
        """Return what `remember` wrote under a name, perhaps before an interruption, or None."""
        path = self.directory / f"{name}.json"
        return read_json(path, ConfigError) if path.exists() else None

    def remember(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Write a measurement into the directory, where a resumed run finds it, and return it."""
        if self.is_main:
            write_json(self.directory / f"{name}.json", value)
        return value

    def exit_if_interrupted(self, outcome: Outcome) -> None:
        """End the program if a signal stopped the training: say how to resume, exit with its code.

        Raises:
            SystemExit: a signal stopped the training.
        """
        if outcome.interrupted is None:
            return
        self.say(
            f"interrupted at step {outcome.step} of {outcome.total_steps}; everything is in "
            f"{outcome.checkpoint}"
        )
        self.say(f"to resume: {self.resume_command()}")
        raise SystemExit(128 + outcome.interrupted)

    def resume_command(self) -> str:
        """Return the command that resumes this run: the one that was typed, run once more."""
        command = typed_command()
        if self.config.train.resume == "auto":
            return command
        return f"{command} --train.resume auto"
