"""Tasks with one class or one score for each row: texts, pairs of texts, images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftkit.backbones.loading import Head
from peftkit.data.augmentation import augment_rows
from peftkit.data.row_files import Row
from peftkit.data.table_rows import RowReader, list_labels, list_paths, read_table_rows
from peftkit.errors import ConfigError, DataError, nearest
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, on_device
from peftkit.losses.classification import classification_loss, regression_loss
from peftkit.metrics.classes import best_threshold, class_metrics, class_report, confusion
from peftkit.metrics.measurement import Measurement
from peftkit.metrics.ranking import ranking_metrics, score_metrics
from peftkit.tasks.base import Task
from peftkit.tasks.inference import evaluating, in_shares

Features = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a model reads of a row, the number of its class (or its score), and perhaps a teacher's
    probabilities.
    """

    features: Features
    label: int | float = IGNORED
    teacher: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.features.get("input_ids", ()))


class ClassificationTask(Task):
    """Chooses one of several classes for each row, by cross-entropy; its outputs are probabilities.

    Rows have ``label``, a text or a whole number. With a ``group`` (a user, a query) in every row
    and two classes, the probability of the second class ranks the rows of each group too.

    Args:
        config: A recipe's config; has `data`, and may have `loss`, `augment` and `threshold`.
        head: The head to load.
        processor: Saved beside the adapter.
        columns: The texts or paths that a row has, beside its label.
        encode: Makes the model's inputs of a row.
        pad: Makes a batch of several rows' inputs.
        read: Reads the rows of one file, where that takes more than looking for the columns.
    """

    target = "label"
    kinds: tuple[type, ...] = (str, int)

    def __init__(
        self,
        config: Any,
        *,
        head: Head,
        processor: Any,
        columns: Sequence[str],
        encode: Callable[[Row], Features],
        pad: Callable[[Sequence[Features]], Batch],
        read: RowReader = read_table_rows,
    ) -> None:
        super().__init__()
        self.config, self.head, self.processor = config, head, processor
        self.columns, self.encode, self.pad, self.reader = columns, encode, pad, read

    def read(self, path: str | Sequence[str], *, labelled: bool = True) -> list[Row]:
        """Return rows with this task's columns."""
        columns: dict[str, tuple[type, ...]] = dict.fromkeys(self.columns, (str,))
        columns |= {self.target: self.kinds} if labelled else {}
        return [
            row
            for each in list_paths(path)
            for row in self.reader(each, columns, self.config.data.columns)
        ]

    def training_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows and the noisy copies of them that the config asks for."""
        settings = getattr(self.config, "augment", None)
        return (
            list(rows)
            if settings is None
            else augment_rows(rows, self.columns, settings, self.config.seed)
        )

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn which labels there are, and how often."""
        labels = list_labels([row["label"] for row in rows if "label" in row])
        labels.sort(
            key=lambda label: label == str(getattr(self.config, "positive", None))
        )  # the positive one is the last
        known = self.learned.setdefault("labels", labels)
        new = sorted(set(labels) - set(known))
        if new:
            raise DataError(
                f"label {new[0]!r} is none of those that the adapter was trained on ({', '.join(known)}); a trained head "
                "cannot take more classes, so leave out `start`"
            )
        if len(known) < 2:
            raise DataError(f"every row has the label {known[0]!r}: there is nothing to tell apart")
        self._check_two_classes(known)
        self.learned["threshold"] = None  # an earlier run's is not this one's
        self.learned["counts"] = [
            sum(str(row.get("label")) == label for row in rows) for label in known
        ]

    def _check_two_classes(self, labels: Sequence[str]) -> None:
        """Refuse settings for two classes where there are others."""
        positive = getattr(self.config, "positive", None)
        asked = [
            name
            for name in ("threshold", "positive")
            if getattr(self.config, name, None) is not None
        ]
        if asked and len(labels) != 2:
            raise ConfigError(
                f"{asked[0]} is for two classes; these rows have {len(labels)}: {', '.join(labels)}"
            )
        if positive is not None and str(positive) not in labels:
            raise ConfigError(
                f"positive is {positive!r}, and the labels are {' and '.join(labels)}"
            )

    def overrides(self) -> dict[str, Any]:
        """Return the head's labels, and the padding token that sentences end before in decoders."""
        labels = self.learned["labels"]
        names = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        padding = getattr(self.processor, "pad_token_id", None)
        return {
            "num_labels": len(labels),
            **names,
            **({} if padding is None else {"pad_token_id": padding}),
        }

    @property
    def loss(self) -> Loss:
        """Cross-entropy, as the config's `loss` and `teacher` ask for it."""
        return classification_loss(
            self.config.loss,
            self.learned["labels"],
            self.learned["counts"],
            getattr(self.config, "teacher", None),
        )

    def examples(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return one example for each row."""
        examples = [
            Encoded(self.encode(row), self._number(row, place), row.get("teacher"))
            for place, row in enumerate(rows, 1)
        ]
        self._lengths = list(map(len, examples))
        return examples

    def remarks(self) -> str:
        """Return how many rows there are, and how many fill the longest example."""
        limit = getattr(self.config.data, "max_length", None)
        full = sum(length == limit for length in self._lengths)
        cut = (
            f", {full} of them as long as data.max_length, so perhaps cut" if limit and full else ""
        )
        return f"{len(self._lengths)} rows{cut}"

    def _number(self, row: Row, place: int) -> int | float:
        """Return a row's class as a number."""
        if "label" not in row:
            return IGNORED
        labels: list[str] = self.learned["labels"]
        if str(row["label"]) not in labels:
            raise DataError(
                f"row {place}: the label {row['label']!r} is none of {', '.join(labels)}{nearest(str(row['label']), labels)}"
            )
        return labels.index(str(row["label"]))

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return the padded inputs, ``labels`` (rows,) and, where any row has a teacher,
        ``teacher`` (rows, classes).
        """
        batch = dict(self.pad([example.features for example in examples]))
        batch["labels"] = torch.tensor([example.label for example in examples])
        if any(example.teacher is not None for example in examples):
            nothing = (0.0,) * len(self.learned["labels"])
            batch["teacher"] = torch.tensor([example.teacher or nothing for example in examples])
        return batch

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return the probability of each class, for each row: lists of as many numbers as there are
        classes.
        """

        def probabilities(examples: Sequence[Encoded]) -> list[list[float]]:
            batch = on_device(
                accelerator.device, self.pad([example.features for example in examples])
            )
            with accelerator.autocast():
                logits = model(**batch).logits
            return self._decoded(logits.float())

        examples = [Encoded(self.encode(row)) for row in rows]
        with evaluating(model):
            return in_shares(probabilities, examples, accelerator, batch_size=batch_size)

    def _decoded(self, logits: Tensor) -> list[Any]:
        found: list[list[float]] = logits.softmax(-1).tolist()
        return found

    def averaged(self, outputs: Sequence[list[Any]]) -> list[Any]:
        """Return the mean probabilities of several models."""
        means: list[Any] = torch.tensor(outputs).mean(0).tolist()
        return means

    def settle(self, rows: Sequence[Row], outputs: Sequence[Any]) -> None:
        """Choose the threshold of the second of two classes, where the config asks for it."""
        if getattr(self.config, "threshold", None) == "best-f1":
            true = [int(self._number(row, place)) for place, row in enumerate(rows, 1)]
            self.learned["threshold"] = best_threshold(true, [each[1] for each in outputs])

    def _decided(self, outputs: Sequence[Any]) -> list[int]:
        asked = getattr(self.config, "threshold", None)
        threshold = asked if isinstance(asked, float) else self.learned.get("threshold")
        if threshold is not None:
            return [int(each[1] >= threshold) for each in outputs]
        return [max(range(len(each)), key=each.__getitem__) for each in outputs]

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, a label, and ``probabilities`` by label."""
        labels = self.learned["labels"]
        return [
            {"prediction": labels[number], "probabilities": dict(zip(labels, each, strict=True))}
            for number, each in zip(self._decided(outputs), outputs, strict=True)
        ]

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return accuracy, F1, AUC for two classes, a report of the classes, the confusion matrix;
        and rankings.
        """
        labels, predicted = self.learned["labels"], self._decided(outputs)
        true = [int(self._number(row, place)) for place, row in enumerate(rows, 1)]
        metrics = class_metrics(labels, true, predicted, outputs)
        if len(labels) == 2 and all("group" in row for row in rows):
            metrics |= ranking_metrics(
                [row["group"] for row in rows], true, [each[1] for each in outputs]
            )
        names = [
            f"{labels[number]} ({max(each):.2f})"
            for number, each in zip(predicted, outputs, strict=True)
        ]
        details = class_report(labels, true, predicted)
        if len(labels) == 2:
            details += f"\n\nf1, auc, rankings and thresholds are those of the class {labels[1]!r}."
        return Measurement(metrics, names, details, confusion(labels, true, predicted))

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's own columns and its label."""
        return [
            (" / ".join(str(row[column]) for column in self.columns), str(row[self.target]))
            for row in rows
        ]


class ScoringTask(ClassificationTask):
    """Gives each row a score, by squared error. Rows have ``score``, a number; with ``group``,
    scores rank its rows too.
    """

    target = "score"
    kinds = (int, float)

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn the mean and the spread of the scores: the model predicts them standardised."""
        scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
        if not float(scores.std(correction=0)) > 0:
            raise DataError("every row has the same score: there is nothing to learn")
        self.learned.setdefault("labels", ["score"])
        self.learned.setdefault("mean", float(scores.mean()))
        self.learned.setdefault("deviation", float(scores.std(correction=0)))

    @property
    def loss(self) -> Loss:
        """Squared error of the standardised score."""
        return regression_loss(self.config.loss)

    def _number(self, row: Row, place: int) -> float:
        return (
            (float(row["score"]) - self.learned["mean"]) / self.learned["deviation"]
            if "score" in row
            else IGNORED
        )

    def _decoded(self, logits: Tensor) -> list[Any]:
        found: list[float] = (
            logits[:, 0] * self.learned["deviation"] + self.learned["mean"]
        ).tolist()
        return found

    def settle(self, rows: Sequence[Row], outputs: Sequence[Any]) -> None:
        """Nothing has to be settled."""

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, the score."""
        return [{"prediction": each} for each in outputs]

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return correlations, the mean absolute error and, with groups, rankings."""
        true = [float(row["score"]) for row in rows]
        metrics = score_metrics(true, outputs)
        if all("group" in row for row in rows):
            metrics |= ranking_metrics(
                [row["group"] for row in rows], [max(0.0, score) for score in true], outputs
            )
        return Measurement(metrics, [f"{each:.3g}" for each in outputs])
