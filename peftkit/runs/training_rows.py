"""Which rows a run learns from, which it holds out, and which it only measures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.empty_rows import leave_out_empty
from peftkit.data.held_out_split import split_held_out
from peftkit.data.replay import add_replay
from peftkit.data.row_classes import class_numbers
from peftkit.data.row_files import source_name
from peftkit.data.row_places import describe_places
from peftkit.data.row_shares import draw_shares, oversample
from peftkit.data.rows import Rows
from peftkit.data.shots import draw_shots, make_shot
from peftkit.errors import ConfigError
from peftkit.runs.streaming import read_streamed
from peftkit.tasks.base import Task


@dataclasses.dataclass
class TrainingRows:
    """The rows of one run.

    Attributes:
        training: The rows to learn from, with replayed ones.
        distinct: Those of `data.train` among them, each once.
        held_out: The rows that are measured; perhaps none.
        retained: Rows of a task that the model could do before; perhaps none.
        decided: What was decided on the way, a line each.
    """

    training: Rows
    distinct: Rows
    held_out: Rows
    retained: Rows
    decided: list[str] = dataclasses.field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return how many rows there are of each kind, and what was decided."""
        return {
            "training": len(self.training),
            "held out": len(self.held_out),
            "retained": len(self.retained),
            "decided": self.decided,
        }


def read_training_rows(task: Task, config: Any, directory: Path | None = None) -> TrainingRows:
    """Return the rows of a run.

    Empty rows are left out first. Then come the split into training and held-out rows, the shots,
    the shares of files, the rows of rare classes again, and replayed rows. The shots are given to
    the task.

    Args:
        task: Reads the files.
        config: The run's config; its ``data`` says which rows, and its ``seed`` how they are drawn.
        directory: The run's directory, in which rows are kept that are read forward
            (`data.streaming`); None reads a few of them, to look at.

    Raises:
        ConfigError: the config asks for what the task's rows do not have.
        DataError: a row cannot be read, or there is nothing to train on or to hold out.
    """
    return _Reading(task, config, directory).read()


class _Reading:
    """The steps in which the rows of a run are read and drawn."""

    def __init__(self, task: Task, config: Any, directory: Path | None) -> None:
        self.task = task
        self.config = config
        self.directory = directory
        self.data = config.data
        self.seed: int = config.seed
        self.decided: list[str] = []

    def read(self) -> TrainingRows:
        """Return the rows, and note what was decided."""
        data = self.data
        paths: list[Any] = list(data.train) if data.shares else [data.train]
        if data.streaming:
            rows, line = read_streamed(self.config, self.directory)
            self.decided.append(line)
            paths = [rows]
        files = list(map(self._read_file, paths))
        rows = Rows.joined(files)
        numbers, held_out = self._split(rows)
        numbers = self._draw_shots(rows, numbers)
        if data.shares:
            numbers = self._share(files, list(map(source_name, paths)), numbers)
        numbers = self._oversample(rows, numbers)
        training, distinct = _select(rows, numbers), _select(rows, np.unique(numbers))
        if data.replay is not None:
            old = self._read_file(data.replay.train)
            training = add_replay(training, old, data.replay.share, self.seed)
        retained = self._read_file(data.retention) if data.retention else Rows.of([])
        return TrainingRows(training, distinct, held_out, retained, self.decided)

    def _read_file(self, path: str | Sequence[str]) -> Rows:
        """Return the rows of a file, or of several, without the empty ones if they may be left."""
        rows = self.task.read(path)
        if not self.data.skip_empty:
            return rows
        rows, lines = leave_out_empty(rows)
        self.decided += lines
        return rows

    def _split(self, rows: Rows) -> tuple[Any, Rows]:
        """Return the numbers of the training rows, an array, and the held-out rows."""
        data = self.data
        if isinstance(data.evaluation, float):
            split = split_held_out(rows, data.evaluation, self.seed, self.task.class_column)
            self.decided += split.decided
            return split.training, rows.select(split.held_out)
        held_out = Rows.of([]) if data.evaluation is None else self._read_file(data.evaluation)
        return np.arange(len(rows), dtype=np.int32), held_out

    def _draw_shots(self, rows: Rows, numbers: Any) -> Any:
        """Give the task its shots, and return the numbers of the training rows without them."""
        count = getattr(self.data, "shots", 0)
        if not count:
            self.task.learned.pop("shots", None)  # of the run that is trained further
            return numbers
        drawn = draw_shots(rows, numbers, count, self.seed)
        self.task.learned["shots"] = [make_shot(rows[int(number)]) for number in drawn]
        self.decided.append(
            f"data.shots puts {describe_places(rows, np.sort(drawn))} before each example, to be "
            "read and not learned"
        )
        return numbers[~np.isin(numbers, drawn)]

    def _share(self, files: Sequence[Rows], names: Sequence[str], numbers: Any) -> Any:
        """Return the numbers of the rows of an epoch in which each file has its share."""
        ends = np.cumsum(list(map(len, files)))
        of_file = np.searchsorted(ends, numbers, side="right")
        drawn, line = draw_shares(of_file, names, self.data.shares, self.seed)
        self.decided.append(line)
        return numbers[drawn]

    def _oversample(self, rows: Rows, numbers: Any) -> Any:
        """Return the numbers of the rows, those of rare classes several times."""
        share = getattr(self.data, "oversample", None)
        if share is None:
            return numbers
        column = self.task.class_column
        if column is None:
            raise ConfigError("data.oversample is for rows with a class: leave it out")
        classes, names = class_numbers(rows.select(numbers), column)
        drawn, line = oversample(classes, names, share, self.seed)
        self.decided.append(line)
        return numbers[drawn]


def _select(rows: Rows, numbers: Any) -> Rows:
    """Return the rows of these numbers; the rows as they are, if that is all of them."""
    is_all = len(numbers) == len(rows) and bool((numbers == np.arange(len(rows))).all())
    return rows if is_all else rows.select(numbers)
