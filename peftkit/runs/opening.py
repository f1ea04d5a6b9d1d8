"""Open a finished run: its config, its task with what that has learned, and its model."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peftkit
from peftkit.config.reading import build, load_yaml
from peftkit.data.row_files import Row, read_rows
from peftkit.errors import ConfigError, nearest
from peftkit.files import read_json
from peftkit.runs.recipes import recipes
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

    def held_out_rows(self) -> list[Row]:
        """Return the rows that the run held out.

        A share that it split off itself is kept as the task had read it.
        """
        if isinstance(self.config.data.evaluation, str):
            return self.task.read(self.held_out())
        return read_rows(self.held_out())

    def backbone(self) -> Any:
        """Load the frozen backbone, with the head for the run's task."""
        return peftkit.load_backbone(
            **self.config.model.arguments(), task=self.task.head, overrides=self.task.overrides()
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
    config = build(recipe.Config, load_yaml(path / "config.yaml"), str(path / "config.yaml"))
    task: Task = recipe.task(config)
    task.learned = entry["learned"]
    return Opened(path, config, task)


def load_recipe(path: Path) -> Any:
    """Import a recipe from its file; it has a class `Config` and a function `task`."""
    name = f"peftkit_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks up the module of a class by its name
    spec.loader.exec_module(module)
    return module


def recipe_named(name: str) -> Path:
    """Return the file of one of peftkit's recipes, or of a recipe that is named by its path.

    Raises:
        ConfigError: there is none.
    """
    known = recipes()
    found = Path(name) if name.endswith(".py") else known.get(name)
    if found is None or not found.is_file():
        raise ConfigError(
            f"there is no recipe {name!r}; recipes are {', '.join(sorted(known))}"
            f"{nearest(name, known)}"
        )
    return found
