"""Open a finished run: its config, its task with what that has learned, and its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peftkit
from peftkit.config.reading import build, load_yaml
from peftkit.data.empty_rows import leave_out_empty
from peftkit.data.row_files import read_rows
from peftkit.data.rows import Rows
from peftkit.errors import ConfigError
from peftkit.files import read_json
from peftkit.internals.transformers_messages import quiet_loading_report
from peftkit.runs.recipes import load_recipe, recipe_named
from peftkit.tasks.base import Task


@dataclass
class Opened:
    """A run that was opened to be used again."""

    directory: Path
    config: Any
    task: Task

    @property
    def adapter(self) -> Path:
        """The directory of the trained adapter."""
        return self.directory / "adapter"

    def held_out(self) -> str:
        """Return the file of the rows that the run held out.

        Raises:
            ConfigError: it held out none.
        """
        evaluation = self.config.data.evaluation
        if evaluation is None:
            raise ConfigError(f"{self.directory} held out no rows: name a file with --data")
        if isinstance(evaluation, str):
            return evaluation
        return str(self.directory / "evaluation.jsonl")

    def held_out_rows(self) -> Rows:
        """Return the rows that the run held out.

        A share that it split off itself is kept as the task had read it.
        """
        if not isinstance(self.config.data.evaluation, str):
            return read_rows(self.held_out())
        return self.labelled_rows(self.held_out())

    def labelled_rows(self, path: str) -> Rows:
        """Return the rows of a file, without empty ones if the run was told to leave them out."""
        rows = self.task.read(path)
        return leave_out_empty(rows)[0] if self.config.data.skip_empty else rows

    def backbone(self) -> Any:
        """Load the frozen backbone, with the head for the run's task.

        The head starts with random weights; those of the run are in the adapter.
        """
        arguments = self.config.model.arguments()
        with quiet_loading_report():
            return peftkit.load_backbone(
                **arguments, task=self.task.head, overrides=self.task.overrides()
            )

    def model(self) -> Any:
        """Load the backbone with the trained adapter."""
        return peftkit.load(self.backbone(), self.adapter)


def open_run(directory: str | Path) -> Opened:
    """Return the run that a directory holds.

    Raises:
        ConfigError: the directory holds no finished run, or its recipe cannot be found.
    """
    path = Path(directory)
    for name, what in (("config.yaml", "run"), ("task.json", "run"), ("adapter", "finished run")):
        if not (path / name).exists():
            raise ConfigError(f"{path} holds no {what}: there is no {path / name}")
    entry = read_json(path / "task.json", ConfigError)
    recipe = load_recipe(recipe_named(entry["recipe"]))
    settings = load_yaml(path / "config.yaml")
    template = path / "adapter" / "chat_template.jinja"
    if settings.get("data", {}).get("chat_template") and template.is_file():
        settings["data"]["chat_template"] = str(template)  # as it was when the run began
    config = build(recipe.Config, settings, str(path / "config.yaml"))
    task: Task = recipe.make_task(config)
    task.learned = entry["learned"]
    return Opened(path, config, task)
