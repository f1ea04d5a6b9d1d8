"""One class or one score for each row: a text, a pair of texts, an image."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftkit.backbones.loading import Head
from peftkit.data.augmentation import augment_rows
from peftkit.data.class_names import rename_classes, sorted_names
from peftkit.data.lint.items import LintItem
from peftkit.data.preview.inputs import input_section
from peftkit.data.preview.shown import Shown, said
from peftkit.data.row_files import RowSource, list_sources
from peftkit.data.row_weights import add_weights, counted_weight, describe_weights
from peftkit.data.rows import Row, Rows
from peftkit.data.table_rows import RowReader, read_table_rows
from peftkit.data.table_values import ReadValue, read_any_text, read_label, read_score, read_text
from peftkit.data.text_encoding import CUT
from peftkit.data.unused_keys import describe_unused
from peftkit.errors import ConfigError, DataError
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, on_device
from peftkit.losses.classification import classification_loss, regression_loss
from peftkit.metrics.classes import best_threshold, class_metrics, class_report, confusion
from peftkit.metrics.measurement import Measurement
from peftkit.metrics.ranking import ranking_metrics, score_metrics
from peftkit.modes import evaluation_mode
from peftkit.tasks.base import Task
from peftkit.tasks.inference import in_shares
from peftkit.tasks.labels import (
    describe_unused_names,
    describe_variants,
    find_number,
    label_numbers,
    label_overrides,
    likeliest,
    listed,
)

Features = Mapping[str, Any]
Encoder = Callable[[Sequence[Row], Counter[str]], Sequence[Features]]
"""Makes the model's inputs of some rows, and counts the texts that it cuts."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a model reads of a row, and what it is to learn from it.

    `label` is the number of a class, or a score. `teacher` has a probability for each class.
    `weight` is that of the row in the loss.
    """

    features: Features
    label: int | float = IGNORED
    teacher: tuple[float, ...] | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.features.get("input_ids", ()))


class ClassificationTask(Task):
    """Chooses one of several classes for each row, by cross-entropy; its outputs are probabilities.

    Rows have ``label``: a text, a whole number, true or false. With a ``group`` (a user, a query)
    in every row and two classes, the probability of the second class ranks the rows of each group
    too.

    Args:
        config: A recipe's config; has `data`, and may have `loss`, `augment` and `threshold`.
        head: The head to load.
        processor: Saved beside the adapter.
        columns: The texts or paths that a row has, beside its label.
        encode: Makes the model's inputs of some rows, and counts those that it cuts.
        pad: Makes a batch of several rows' inputs.
        read: Reads the rows of one file, where that takes more than looking for the columns.
    """

    example_class = Encoded
    target = "label"
    class_column: str | None = "label"
    read_target: ReadValue = staticmethod(read_label)

    def __init__(
        self,
        config: Any,
        *,
        head: Head,
        processor: Any,
        columns: Sequence[str],
        encode: Encoder,
        pad: Callable[[Sequence[Features]], Batch],
        read: RowReader = read_table_rows,
    ) -> None:
        super().__init__()
        self.config = config
        self.head = head
        self.processor = processor
        self.columns = columns
        self.encode_inputs = encode
        self.pad = pad
        self.read_file = read

    def read(self, source: RowSource, *, labelled: bool = True) -> Rows:
        """Return rows with this task's columns."""
        read: ReadValue = read_text if labelled else read_any_text
        columns = dict.fromkeys(self.columns, read)
        if labelled:
            columns[self.target] = self.read_target
        found = []
        data = self.config.data
        for each in list_sources(source):
            found.append(self.read_file(each, columns, data.columns, data.encoding))
        rows = Rows.joined(found)
        return rename_classes(rows, self._label_names) if labelled else rows

    @property
    def _label_names(self) -> dict[str, str]:
        names: dict[str, str] = getattr(self.config.data, "label_names", {})
        return names

    def lint_item(self, row: Row, where: str) -> LintItem:
        """Return the texts of a row, or its file, and its label."""
        label = row.get("label")
        labels = () if label is None else (str(label),)
        first, *others = [row[column] for column in self.columns]
        if self.head == "sequence-classification":
            return LintItem(where, first, "\n".join(others), labels=labels)
        return LintItem(where, labels=labels, file=first)

    def augment(self, rows: Rows) -> Rows:
        """Return rows and the noisy copies of them that the config asks for."""
        settings = getattr(self.config, "augment", None)
        if settings is None:
            return rows
        return augment_rows(rows, self.columns, settings, self.config.seed)

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn which labels there are, and how often."""
        counts: Counter[str] = Counter()
        for row in rows:
            if row.get("label") is not None:
                counts[row["label"]] += 1
        found = sorted_names(counts)
        positive = getattr(self.config, "positive", None)
        if positive is not None and str(positive) in found:  # the positive one is the last
            found.remove(str(positive))
            found.append(str(positive))
        labels: list[str] = self.learned.setdefault("labels", found)
        new = sorted(set(found) - set(labels))
        if new:
            raise DataError(
                f"label {new[0]!r} is none of those that the adapter was trained on "
                f"({listed(labels)}); a trained head cannot take more classes, so leave out "
                "`start`"
            )
        if len(labels) < 2:
            raise DataError(
                f"every row has the label {listed(labels)!r}: there is nothing to tell apart"
            )
        self._check_two_classes(labels)
        self.learned["threshold"] = None  # that of an earlier run is not this one's
        self.learned["counts"] = [counts[label] for label in labels]
        self.notes = describe_variants(counts, "label", "rows")
        self.notes += describe_unused_names(self._label_names, counts)
        self.notes += self._describe_unused(rows)

    def _describe_unused(self, rows: Sequence[Row]) -> list[str]:
        return describe_unused(Rows.of(rows).columns, (*self.columns, self.target))

    def _check_two_classes(self, labels: Sequence[str]) -> None:
        """Check that settings for two classes are given only where there are two."""
        for name in ("threshold", "positive"):
            if getattr(self.config, name, None) is not None and len(labels) != 2:
                raise ConfigError(
                    f"{name} is for two classes; these rows have {len(labels)}: {listed(labels)}"
                )
        positive = getattr(self.config, "positive", None)
        if positive is not None and str(positive) not in labels:
            raise ConfigError(
                f"positive is {positive!r}, and the labels are {' and '.join(labels)}"
            )

    def overrides(self) -> dict[str, Any]:
        """Return the head's labels."""
        return label_overrides(self.learned["labels"], self.processor)

    @property
    def loss(self) -> Loss:
        """Cross-entropy, as the config's `loss` and `teacher` ask for it."""
        return classification_loss(
            self.config.loss,
            self.learned["labels"],
            self.learned["counts"],
            getattr(self.config, "teacher", None),
        )

    def encode(self, rows: Sequence[Row], counts: Counter[str]) -> list[list[Encoded]]:
        """Return one example for each row."""
        has_teacher = getattr(self.config, "teacher", None) is not None
        inputs = self.encode_inputs(rows, counts)
        found = []
        for row, features, number in zip(rows, inputs, self._numbers(rows), strict=True):
            teacher = row.get("teacher") if has_teacher else None
            found.append([Encoded(features, number, teacher, counted_weight(row, counts))])
        return found

    def remarks(self) -> str:
        """Return how many rows there are, and how many were cut."""
        remark = f"{self.counts['rows']} rows"
        cut = self.counts[CUT]
        remark += f", {cut} of them cut at data.max_length" if cut else ""
        return remark + describe_weights(self.counts)

    def _numbers(self, rows: Sequence[Row]) -> list[Any]:
        """Return the number of each row's class; -100 for a row without a label."""
        numbers = label_numbers(self.learned["labels"])
        found = []
        for row in rows:
            label = row.get("label")
            found.append(IGNORED if label is None else find_number(label, numbers, "label"))
        return found

    def show(self, row: Row) -> list[Shown]:
        """Return a row's texts or picture, and its label or score."""
        ((example,),) = self.encode([row], Counter())
        texts = [row[column] for column in self.columns]
        limit = getattr(self.config.data, "max_length", None)
        name = " / ".join(self.columns)
        read = input_section(name, example.features, texts, self.processor, self.pad, limit)
        learned = row.get(self.target, "what the teacher says")  # a row without a label has one
        return [Shown((read, said(self.target, learned)), len(example))]

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return the padded inputs and ``labels``, (rows,).

        If any row has a teacher, there is ``teacher``, (rows, classes), too; it is 0 in the rows
        without one. There are ``weights``, (rows,), if a row's is not 1.
        """
        batch = dict(self.pad([example.features for example in examples]))
        batch["labels"] = torch.tensor([example.label for example in examples])
        teachers = [example.teacher for example in examples]
        if any(teachers):
            nothing = (0.0,) * len(self.learned["labels"])
            batch["teacher"] = torch.tensor([teacher or nothing for teacher in teachers])
        return add_weights(batch, examples)

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return, for each row, a list with the probability of each class."""

        def predict(batch: Sequence[Row]) -> list[Any]:
            inputs = self.pad(self.encode_inputs(batch, Counter()))
            with accelerator.autocast():
                logits = model(**on_device(accelerator.device, inputs)).logits  # [rows, classes]
            return self._decode(logits.float())

        with torch.no_grad(), evaluation_mode(model):
            return in_shares(
                predict, rows, accelerator, batch_size=batch_size, length=self._characters
            )

    def _characters(self, row: Row) -> int:
        """Return how long the texts of a row are; images have 0."""
        if self.head != "sequence-classification":
            return 0
        return sum(len(row[column]) for column in self.columns)

    def _decode(self, logits: Tensor) -> list[Any]:
        """Return the outputs for the logits of some rows."""
        probabilities: list[list[float]] = logits.softmax(-1).tolist()
        return probabilities

    def average(self, outputs: Sequence[list[Any]]) -> list[Any]:
        """Return the mean probabilities of several models."""
        means: list[Any] = torch.tensor(outputs).mean(0).tolist()  # over [models, rows, classes]
        return means

    def calibrate(self, rows: Sequence[Row], outputs: Sequence[Any]) -> None:
        """Choose the threshold of the second of two classes, if the config asks for it."""
        if getattr(self.config, "threshold", None) == "best-f1":
            true = self._numbers(rows)
            self.learned["threshold"] = best_threshold(true, _second(outputs))

    def _choose(self, outputs: Sequence[Any]) -> list[int]:
        """Return the number of the class that is predicted for each row."""
        threshold = getattr(self.config, "threshold", None)
        if not isinstance(threshold, float):
            threshold = self.learned.get("threshold")
        if threshold is None:
            return list(map(likeliest, outputs))
        return [int(probability >= threshold) for probability in _second(outputs)]

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, a label, and ``probabilities`` by label."""
        labels = self.learned["labels"]
        found: list[Row] = []
        for number, probabilities in zip(self._choose(outputs), outputs, strict=True):
            by_label = dict(zip(labels, probabilities, strict=True))
            found.append({"prediction": labels[number], "probabilities": by_label})
        return found

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return accuracy, F1, a report of the classes and the confusion matrix.

        Two classes have AUC too; and rankings, if every row has a group.
        """
        labels: list[str] = self.learned["labels"]
        true, predicted = self._numbers(rows), self._choose(outputs)
        metrics = class_metrics(labels, true, predicted, outputs)
        details = class_report(labels, true, predicted)
        if len(labels) == 2:
            details += f"\n\nf1, auc, rankings and thresholds are those of the class {labels[1]!r}."
            groups = _groups(rows)
            if groups is not None:
                metrics |= ranking_metrics(groups, true, _second(outputs))
        shown = []
        for number, probabilities in zip(predicted, outputs, strict=True):
            shown.append(f"{labels[number]} ({max(probabilities):.2f})")
        return Measurement(metrics, shown, details, confusion(labels, true, predicted))

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's columns, and its label."""
        found = []
        for row in rows:
            texts = [str(row[column]) for column in self.columns]
            found.append((" / ".join(texts), str(row[self.target])))
        return found


def _second(outputs: Sequence[Any]) -> list[float]:
    """Return the probability of the second class for each row."""
    return [probabilities[1] for probabilities in outputs]


def _groups(rows: Sequence[Row]) -> list[Any] | None:
    """Return the group of each row; None if a row has none."""
    groups = []
    for row in rows:
        if row.get("group") is None:
            return None
        groups.append(row["group"])
    return groups


class ScoringTask(ClassificationTask):
    """Gives each row a score, by squared error; its outputs are the scores.

    Rows have ``score``, a number. With a ``group`` in every row, the scores rank each group's rows.
    """

    target = "score"
    class_column = None
    read_target = staticmethod(read_score)

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn the mean and the spread of the scores: the model predicts them standardised."""
        count, mean, squares = 0, 0.0, 0.0  # of the scores so far (Welford 1962)
        for row in rows:
            score = float(row["score"])
            count += 1
            distance = score - mean
            mean += distance / count
            squares += distance * (score - mean)
        deviation = math.sqrt(squares / max(count, 1))
        if not deviation > 0:
            raise DataError("every row has the same score: there is nothing to learn")
        self.learned.setdefault("labels", ["score"])
        self.learned.setdefault("mean", mean)
        self.learned.setdefault("deviation", deviation)
        self.notes = self._describe_unused(rows)

    @property
    def loss(self) -> Loss:
        """Squared error of the standardised score."""
        return regression_loss(self.config.loss)

    def _numbers(self, rows: Sequence[Row]) -> list[Any]:
        """Return each row's standardised score, (score - mean) / deviation."""
        mean, deviation = self.learned["mean"], self.learned["deviation"]
        numbers = []
        for row in rows:
            score = row.get("score")
            numbers.append(IGNORED if score is None else (float(score) - mean) / deviation)
        return numbers

    def _decode(self, logits: Tensor) -> list[Any]:
        mean, deviation = self.learned["mean"], self.learned["deviation"]
        scores: list[float] = (logits[:, 0] * deviation + mean).tolist()  # [rows]
        return scores

    def calibrate(self, rows: Sequence[Row], outputs: Sequence[Any]) -> None:
        """Do nothing: a score needs no threshold."""

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, the score."""
        return [{"prediction": score} for score in outputs]

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return correlations, the mean absolute error and, with groups, rankings."""
        true = [float(row["score"]) for row in rows]
        metrics = score_metrics(true, outputs)
        groups = _groups(rows)
        if groups is not None:
            gains = [max(0.0, score) for score in true]  # a gain is not negative
            metrics |= ranking_metrics(groups, gains, outputs)
        return Measurement(metrics, [f"{score:.3g}" for score in outputs])
