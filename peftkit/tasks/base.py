"""What a recipe says about its task. The rest of the library asks a `Task` and nothing else.

To add a task, write a file beside this one with a class that has the methods below, and a recipe
(`recipes/`) that makes it from a config. First see whether one of the tasks here does: most of
them take functions for what differs between texts, images and sound.

The methods are called in this order. A run reads rows, lets the task learn from them (`fit`), loads
a backbone with the task's `head` and `overrides`, and turns rows into `examples`, which several
processes `encode`. Training collates them into batches and minimises `loss`. Evaluation asks for
the model's `outputs` and `measure`s them; prediction turns outputs into `predictions`.

The shortest complete task predicts how many stars a review gives, from rows such as
``{"text": "Lovely.", "stars": 4}``:

    @dataclass
    class Review:
        input_ids: list[int]
        stars: int

        def __len__(self):  # the loop groups examples by length
            return len(self.input_ids)


    class StarsTask(Task):
        head = "sequence-classification"
        example_class = Review

        def __init__(self, config):
            super().__init__()
            self.processor = peftkit.load_tokenizer(config.model.source)

        def read(self, source, *, labelled=True):
            return read_rows(source)

        def overrides(self):
            return {"num_labels": 5}

        @property
        def loss(self):
            return ModelLoss()  # cross-entropy, as transformers computes it from labels

        def encode(self, rows, counts):
            texts = self.processor([row["text"] for row in rows])["input_ids"]
            return [[Review(ids, row["stars"])] for ids, row in zip(texts, rows)]

        def collate(self, examples):
            texts = {"input_ids": [example.input_ids for example in examples]}
            batch = self.processor.pad(texts, return_tensors="pt")  # [rows, longest]
            return {**batch, "labels": torch.tensor([example.stars for example in examples])}

        def outputs(self, model, rows, accelerator, *, batch_size):
            def count_stars(texts):
                batch = self.processor(texts, padding=True, return_tensors="pt")
                logits = model(**batch.to(accelerator.device)).logits  # [rows, 5]
                return logits.argmax(-1).tolist()

            texts = [row["text"] for row in rows]
            with torch.no_grad(), evaluation_mode(model):
                return in_shares(count_stars, texts, accelerator, batch_size=batch_size)

        def predictions(self, rows, outputs):
            return [{"stars": stars} for stars in outputs]

        def measure(self, rows, outputs):
            right = [row["stars"] == stars for row, stars in zip(rows, outputs)]
            return Measurement({"accuracy": sum(right) / len(right)}, list(map(str, outputs)))

        def shown(self, rows):
            return [(row["text"], str(row["stars"])) for row in rows]
"""

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from peftkit.backbones.loading import Head
from peftkit.data.encoding_digest import encoding_digest
from peftkit.data.lint.items import LintItem, LintItems
from peftkit.data.lint.linting import AT_START, THOROUGH, LintReport, lint
from peftkit.data.preview.shown import Shown, said
from peftkit.data.row_files import RowSource
from peftkit.data.rows import Row, Rows
from peftkit.data.stored_examples import encode_rows
from peftkit.errors import ConfigError, DataError
from peftkit.losses.base import Batch, Loss
from peftkit.metrics.measurement import Measurement

_WHICH_ROWS = (
    "train",
    "evaluation",
    "replay",
    "retention",
    "skip_empty",
    "shares",
    "oversample",
    "lint",
)


class Task(ABC):
    """How rows become batches, what is minimised, and what a model's outputs mean.

    Attributes:
        head: The head to load, of `peftkit.load_backbone`'s tasks.
        processor: A tokenizer, or what takes its place for images and sound. It is saved beside
            the adapter.
        learned: What the task learned from the training rows, such as the labels. It is plain
            data, and kept in the run's ``task.json``.
        example_class: The class of the examples, a dataclass: see
            `peftkit.data.stored_examples`.
        notes: What `fit` saw in the training rows that is likely not meant, in sentences.
        counts: What happened to the rows of the last `examples`, by name.
        class_column: The column with a row's class; None if rows have none.
        averages: Whether the outputs of several models have a mean.
        is_quick_to_measure: Whether every evaluation during training measures outputs too, and not
            the loss alone.
    """

    head: Head
    example_class: type
    processor: Any
    class_column: str | None = None
    averages: bool = True
    is_quick_to_measure: bool = True

    def __init__(self) -> None:
        self.learned: dict[str, Any] = {}
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()

    # Rows

    @abstractmethod
    def read(self, source: RowSource, *, labelled: bool = True) -> Rows:
        """Return rows, each of which is checked when it is asked for.

        Args:
            source: Where they are, or a list of several places; see
                `peftkit.data.row_files.read_rows`.
            labelled: Whether rows must have what is to be predicted.
        """

    def fit(self, rows: Sequence[Row]) -> None:  # noqa: B027 -- most tasks learn nothing from rows
        """Learn from the training rows what the model needs before it is loaded."""

    def lint_item(self, row: Row, where: str) -> LintItem:
        """Return the parts of a row, which stands at `where`, that the lint looks at."""
        [(given, expected)] = self.shown([row])
        return LintItem(where, given, answer=expected)

    def lint(self, rows: Rows, held_out: Rows, *, thorough: bool = True) -> LintReport:
        """Look for what is likely not meant in the rows: see `peftkit.data.lint.linting.lint`.

        Cut answers are those of the last call of `examples`.

        Args:
            rows: The rows to train on.
            held_out: The rows to measure on; there may be none.
            thorough: If not, look at 5,000 rows of each, as a run does when it starts.
        """
        return lint(
            LintItems(rows, self.lint_item),
            LintItems(held_out, self.lint_item),
            tokenizer=self.processor,
            limit=THOROUGH if thorough else AT_START,
            thorough=thorough,
            counts=self.counts,
        )

    def augment(self, rows: Rows) -> Rows:
        """Return the rows, and the noisy copies of them that the config asks for."""
        return rows

    # Model

    def overrides(self) -> dict[str, Any]:
        """Return attributes to set on the backbone's config."""
        return {}

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Check that the model can do what the config asks for."""

    # Training

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """What is minimised."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], counts: Counter[str]) -> Sequence[Sequence[Any]]:
        """Return the examples of each of some rows, labelled or not.

        The `len` of an example is its length in tokens, and its `repr` tells it from others.
        Several processes encode at the same time, so this may depend on the task's attributes and
        change nothing but the counts.

        Args:
            rows: Some rows.
            counts: Takes what happened to the rows, by name: ``counts["truncated"] += 1``.

        Raises:
            DataError: a row cannot be encoded. The caller finds out which and names it.
        """

    def examples(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Return the examples of all rows, as training takes them."""
        return self.encode_all(rows)

    def check_learned(self) -> None:  # noqa: B027 -- most tasks learn something of every row
        """Check that something is learned of most rows that became examples last.

        Raises:
            DataError: it is not.
        """

    def encode_all(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Return the examples of all rows; of many, from files that are made once.

        Of examples that say how many of their tokens are ``supervised``, these are counted.
        """
        found, self.counts = encode_rows(
            Rows.of(rows),
            self._encode_and_count,
            self.example_class,
            self._encoding,
            type(self).__name__,
        )
        self.counts["rows"] = len(rows)
        return found

    def _encode_and_count(
        self, rows: Sequence[Row], counts: Counter[str]
    ) -> Sequence[Sequence[Any]]:
        encoded = self.encode(rows, counts)
        for examples in encoded:
            for example in examples:
                counts["supervised"] += getattr(example, "supervised", 0)
        return encoded

    def _encoding(self) -> str:
        """Return all that examples depend on beside their rows: code, processor and settings."""
        data = getattr(getattr(self, "config", None), "data", None)
        settings = dict(vars(data)) if data is not None else {}
        for name in _WHICH_ROWS:  # the content of rows counts, not their names
            settings.pop(name, None)
        return encoding_digest(self, self.processor, [settings, self.learned])

    def remarks(self) -> str:
        """Return what the last call of `examples` cut or left out; an empty text if nothing."""
        return ""

    def show(self, row: Row) -> Iterable[Shown]:
        """Return what a person should see of the examples of a row: what is read, and learned."""
        ((given, expected),) = self.shown([row])
        return [Shown((said("input", given, "read"), said("to predict", expected)))]

    def show_rows(self, rows: Rows, count: int) -> list[Shown]:
        """Return what a person should see of the first examples of rows, `count` at most.

        Raises:
            DataError: a row cannot be shown. The message names it.
        """
        found: list[Shown] = []
        for number in range(len(rows)):
            if len(found) == count:
                break
            row, where = rows[number], rows.where(number)
            try:
                for example in itertools.islice(self.show(row), count - len(found)):
                    notes = (*example.notes, *_weight_note(row))
                    found.append(dataclasses.replace(example, where=where, notes=notes))
            except DataError as problem:
                raise type(problem)(f"{where}: {problem}") from None
        return found

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:
        """Return a batch of tensors."""

    # Evaluation and prediction

    def measured_rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows to measure and to show: all of them, unless outputs take long."""
        return rows

    @abstractmethod
    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return the model's output for each row: probabilities, or a text."""

    def average(self, outputs: Sequence[list[Any]]) -> list[Any]:
        """Return the mean of several models' outputs for the same rows.

        Raises:
            ConfigError: the task's outputs have no mean.
        """
        raise ConfigError(
            "predictions of several runs can be averaged for classes, tags and scores, not for "
            "texts"
        )

    def calibrate(self, rows: Sequence[Row], outputs: Sequence[Any]) -> None:  # noqa: B027
        """Learn from the trained model's outputs what it needs to predict, such as a threshold."""

    @abstractmethod
    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return the columns that a prediction adds to each row."""

    @abstractmethod
    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return how good the outputs are."""

    @abstractmethod
    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return, for each of `Measurement.predictions`, the input and the expected output."""


def _weight_note(row: Row) -> list[str]:
    """Return what a person should know of a row whose loss counts for more or less than 1."""
    weight = row.get("weight")
    return [] if weight in (None, 1) else [f"Its weight in the loss is {weight:g}."]
