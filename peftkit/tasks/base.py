"""What a recipe says about its task; `peftkit.runs.finetune`, `peftkit evaluate` and `peftkit
predict` do the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from peftkit.backbones.loading import Head
from peftkit.data.row_files import Row
from peftkit.errors import ConfigError
from peftkit.losses.base import Batch, Loss
from peftkit.metrics.measurement import Measurement


class Task(ABC):
    """How rows become batches, what is minimised, what a model's outputs mean, and how good they
    are.

    Attributes:
        head: The head to load, of `peftkit.load_backbone`'s tasks.
        processor: Saved beside the adapter: a tokenizer, or what takes its place for images and
            sound.
        learned: What the training rows have told, such as the labels; plain data, kept in the run's
            ``task.json``.
        averages: Outputs of several models have a mean.
        is_quick_to_measure: Every evaluation during training gives the task's metrics too, not the
            loss alone.
    """

    head: Head
    processor: Any
    is_quick_to_measure: bool = True
    averages: bool = True

    def __init__(self) -> None:
        self.learned: dict[str, Any] = {}

    @abstractmethod
    def read(self, path: str | Sequence[str], *, labelled: bool = True) -> list[Row]:
        """Return the checked rows of a file or of several; without `labelled`, rows may lack what
        is to be predicted.
        """

    def fit(self, rows: Sequence[Row]) -> None:  # noqa: B027 -- most tasks learn nothing before the training
        """Take from the training rows what has to be known before the model is made."""

    def training_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows to train on: those given, and noisy copies where the config asks for
        them.
        """
        return list(rows)

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Refuse a model that cannot do what the config asks for."""

    def measured_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows whose outputs are measured and shown: all, unless outputs take long."""
        return list(rows)

    def settle(self, rows: Sequence[Row], outputs: Sequence[Any]) -> None:  # noqa: B027
        """Take from the trained model's outputs on held-out rows what has to be known before it
        predicts.
        """

    def overrides(self) -> dict[str, Any]:
        """Return attributes to set on the backbone's config."""
        return {}

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """The loss."""

    @abstractmethod
    def examples(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Return the examples of rows, labelled or not; what was cut or left out is told by
        `remarks`.
        """

    def remarks(self) -> str:
        """Return what happened to the rows of the last call of `examples`, for people; an empty
        text if nothing did.
        """
        return ""

    def preview(self, rows: Sequence[Row], *, count: int, color: bool) -> str:
        """Return the first rows as a model will learn from them, and what became of all."""
        self.examples(rows)
        return "\n".join(
            [
                *(f"{asked}\n  -> {expected}" for asked, expected in self.shown(rows[:count])),
                self.remarks(),
            ]
        )

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:
        """Return a batch of tensors."""

    @abstractmethod
    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return what the model says of each row: probabilities, or a text."""

    def averaged(self, outputs: Sequence[list[Any]]) -> list[Any]:
        """Return the mean of several models' outputs for the same rows.

        Raises:
            ConfigError: the task's outputs have no mean.
        """
        raise ConfigError(
            "predictions of several runs can be averaged for classes, tags and scores, not for texts"
        )

    @abstractmethod
    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return the columns that a prediction adds to each row."""

    @abstractmethod
    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return how good the outputs are."""

    @abstractmethod
    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return, for each of `Measurement.predictions`, what was asked and what was expected."""
