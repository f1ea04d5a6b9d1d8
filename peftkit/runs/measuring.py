"""What a run measures before, while and after it learns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from peftkit.data.rows import Row, Rows
from peftkit.metrics.measurement import Measurement
from peftkit.tasks.base import Task
from peftkit.training.callbacks import Callback
from peftkit.training.evaluation import evaluate
from peftkit.training.out_of_memory import explained
from peftkit.training.state import TrainingState

_MOST_TRAINING_ROWS = 256  # are measured where none are held out


def sample_of_training(rows: Rows) -> Rows:
    """Return the training rows to measure where none are held out: a few, evenly spread."""
    if len(rows) <= _MOST_TRAINING_ROWS:
        return rows
    # The middle of each of as many equal parts.
    places = (np.arange(_MOST_TRAINING_ROWS) + 0.5) * len(rows) / _MOST_TRAINING_ROWS
    return rows.select(places.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class MeasuredRows:
    """Rows with labels, and the examples that are made of them."""

    rows: Rows
    examples: Sequence[Any]


@dataclasses.dataclass
class Measuring:
    """Measures models on the rows of one run.

    Args:
        task: The run's task.
        config: The run's config.
        measured: The rows of this task to measure.
        retained: Rows of a task that the model could do before; perhaps none.
        accelerator: Its processes share the work.
        remember: Keeps what the task has learned from outputs, such as a threshold.
    """

    task: Task
    config: Any
    measured: MeasuredRows
    retained: MeasuredRows
    accelerator: Accelerator
    remember: Callable[[], None]

    def measure(self, model: nn.Module, *, calibrate: bool = False) -> Measurement:
        """Return loss and metrics on the measured rows, and on those of the old task.

        Args:
            model: With or without an adapter.
            calibrate: First let the task learn from these outputs, such as a threshold.
        """
        train = self.config.train
        with explained("evaluation", train, quantization=self.config.model.quantization):
            found = self.outputs(model, self.measured.rows, calibrate=calibrate)
            metrics = self._loss(model, self.measured.examples) | found.metrics
            if self.retained.rows:
                retained = self._loss(model, self.retained.examples)
                retained |= self.outputs(model, self.retained.rows).metrics
                metrics |= {f"retained {name}": value for name, value in retained.items()}
        return dataclasses.replace(found, metrics=metrics)

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], *, calibrate: bool = False
    ) -> Measurement:
        """Return how good the model's outputs for some rows are, without the loss."""
        rows = self.task.measured_rows(rows)
        outputs = self.task.outputs(model, rows, self.accelerator, batch_size=self._batch_size)
        if calibrate:
            self.task.calibrate(rows, outputs)
            self.remember()
        found = self.task.measure(rows, outputs)
        return dataclasses.replace(found, predictions=self._sample(found.predictions))

    def _loss(self, model: nn.Module, examples: Sequence[Any]) -> dict[str, float]:
        return evaluate(
            model,
            examples,
            self.task.collate,
            self.accelerator,
            batch_size=self._batch_size,
            loss=self.task.loss,
        )

    @property
    def _batch_size(self) -> int:
        train = self.config.train
        return int(train.evaluation_batch_size or train.batch_size)

    def shown(self) -> list[tuple[str, str]]:
        """Return, for each of a measurement's predictions, the input and the expected output."""
        return self.task.shown(self._sample(self.task.measured_rows(self.measured.rows)))

    def _sample(self, items: Sequence[Any]) -> list[Any]:
        """Return as many items as the report shows, evenly spread."""
        count = self.config.samples
        if count == 0:
            return []
        every = max(1, len(items) // count)
        return list(items[::every][:count])


class HeldOutMetrics(Callback):
    """Measures the model's outputs on the held-out rows at each evaluation."""

    def __init__(self, measuring: Measuring) -> None:
        self._measuring = measuring

    def measure(self, state: TrainingState) -> Mapping[str, float]:
        """Return the task's metrics."""
        measuring = self._measuring
        return measuring.outputs(state.model, measuring.measured.rows).metrics
