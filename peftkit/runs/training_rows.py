"""Which rows a run learns from, which it holds out, and which it only measures."""

import dataclasses
from typing import Any

from peftkit.data.held_out_split import split_held_out
from peftkit.data.replay import add_replay
from peftkit.data.rows import Rows
from peftkit.tasks.base import Task


@dataclasses.dataclass
class TrainingRows:
    """The rows of one run.

    Attributes:
        training: The rows to learn from, with replayed ones.
        held_out: The rows that are measured; perhaps none.
        retained: Rows of a task that the model could do before; perhaps none.
        decided: What was decided on the way, a line each.
    """

    training: Rows
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


def read_training_rows(task: Task, config: Any) -> TrainingRows:
    """Return the rows of a run.

    Args:
        task: Reads the files.
        config: The run's config; its ``data`` says which rows, and its ``seed`` how they are drawn.
    """
    data, seed = config.data, config.seed
    rows = task.read(data.train)
    held_out = Rows.of([])
    if isinstance(data.evaluation, float):
        rows, held_out = split_held_out(rows, data.evaluation, seed)
    elif data.evaluation is not None:
        held_out = task.read(data.evaluation)
    if data.replay is not None:
        rows = add_replay(rows, task.read(data.replay.train), data.replay.share, seed)
    retained = task.read(data.retention) if data.retention else Rows.of([])
    return TrainingRows(rows, held_out, retained)
