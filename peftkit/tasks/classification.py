"""One class or one score for each row: a text, a pair of texts, an image."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftkit.backbones.loading import Head
from peftkit.data.augmentation import augment_rows
from peftkit.data.lint.items import LintItem
from peftkit.data.rows import Row, Rows
from peftkit.data.table_rows import RowReader, list_labels, list_paths, read_table_rows
from peftkit.errors import ConfigError, DataError, nearest
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, on_device
from peftkit.losses.classification import classification_loss, regression_loss
from peftkit.metrics.classes import best_threshold, class_metrics, class_report, confusion
from peftkit.metrics.measurement import Measurement
from peftkit.metrics.ranking import ranking_metrics, score_metrics
from peftkit.modes import evaluation_mode
from peftkit.tasks.base import Task
from peftkit.tasks.inference import in_shares
from peftkit.tasks.labels import label_overrides, likeliest

Features = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a model reads of a row, and what it is to learn from it.

    `label` is the number of a class, or a score. `teacher` has a probability for each class.
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

    example_class = Encoded
    target = "label"
    class_column: str | None = "label"
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
        self.config = config
        self.head = head
        self.processor = processor
        self.columns = columns
        self.encode_row = encode
        self.pad = pad
        self.read_file = read

    def read(self, path: str | Sequence[str], *, labelled: bool = True) -> Rows:
        """Return rows with this task's columns."""
        columns: dict[str, tuple[type, ...]] = dict.fromkeys(self.columns, (str,))
        if labelled:
            columns[self.target] = self.kinds
        found = []
        for file in list_paths(path):
            found.append(self.read_file(file, columns, self.config.data.columns))
        return Rows.joined(found)

    def lint_item(self, row: Row, where: str) -> LintItem:
        """Return the texts of a row, or its file, and its label."""
        label = row.get("label")
        labels = () if label is None else (str(label),)
        read = [row[column] for column in self.columns]
        if self.head == "sequence-classification":
            return LintItem(where, "\n".join(read), labels=labels)
        return LintItem(where, labels=labels, file="\n".join(read))

    def augment(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows and the noisy copies of them that the config asks for."""
        settings = getattr(self.config, "augment", None)
        if settings is None:
            return list(rows)
        return augment_rows(rows, self.columns, settings, self.config.seed)

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn which labels there are, and how often."""
        found = list_labels([row["label"] for row in rows if "label" in row])
        positive = getattr(self.config, "positive", None)
        if positive is not None and str(positive) in found:  # the positive one is the last
            found.remove(str(positive))
            found.append(str(positive))
        labels: list[str] = self.learned.setdefault("labels", found)
        new = sorted(set(found) - set(labels))
        if new:
            raise DataError(
                f"label {new[0]!r} is none of those that the adapter was trained on "
                f"({', '.join(labels)}); a trained head cannot take more classes, so leave out "
                "`start`"
            )
        if len(labels) < 2:
            raise DataError(
                f"every row has the label {labels[0]!r}: there is nothing to tell apart"
            )
        self._check_two_classes(labels)
        self.learned["threshold"] = None  # that of an earlier run is not this one's
        counts = Counter(str(row.get("label")) for row in rows)
        self.learned["counts"] = [counts[label] for label in labels]

    def _check_two_classes(self, labels: Sequence[str]) -> None:
        """Check that settings for two classes are given only where there are two."""
        for name in ("threshold", "positive"):
            if getattr(self.config, name, None) is not None and len(labels) != 2:
                raise ConfigError(
                    f"{name} is for two classes; these rows have {len(labels)}: {', '.join(labels)}"
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
        limit = getattr(self.config.data, "max_length", None)
        found = []
        for row, label in zip(rows, self._numbers(rows), strict=True):
            example = Encoded(self.encode_row(row), label, row.get("teacher"))
            counts["full"] += len(example) == limit
            found.append([example])
        return found

    def remarks(self) -> str:
        """Return how many rows there are, and how many fill the longest example."""
        remark = f"{self.counts['rows']} rows"
        full = self.counts["full"]
        if full:
            remark += f", {full} of them as long as data.max_length, so perhaps cut"
        return remark

    def _numbers(self, rows: Sequence[Row]) -> list[Any]:
        """Return the number of each row's class; -100 for a row without a label."""
        labels: list[str] = self.learned["labels"]
        numbers = []
        for row in rows:
            label = str(row.get("label"))
            if "label" not in row:
                numbers.append(IGNORED)
            elif label in labels:
                numbers.append(labels.index(label))
            else:
                raise DataError(
                    f"the label {row['label']!r} is none of {', '.join(labels)}"
                    f"{nearest(label, labels)}"
                )
        return numbers

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return the padded inputs and ``labels``, (rows,).

        If any row has a teacher, there is ``teacher``, (rows, classes), too; it is 0 in the rows
        without one.
        """
        batch = dict(self.pad([example.features for example in examples]))
        batch["labels"] = torch.tensor([example.label for example in examples])
        teachers = [example.teacher for example in examples]
        if any(teachers):
            nothing = (0.0,) * len(self.learned["labels"])
            batch["teacher"] = torch.tensor([teacher or nothing for teacher in teachers])
        return batch

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return, for each row, a list with the probability of each class."""

        def predict(examples: Sequence[Encoded]) -> list[Any]:
            inputs = self.pad([example.features for example in examples])
            with accelerator.autocast():
                logits = model(**on_device(accelerator.device, inputs)).logits  # [rows, classes]
            return self._decode(logits.float())

        examples = [Encoded(self.encode_row(row)) for row in rows]
        with torch.no_grad(), evaluation_mode(model):
            return in_shares(predict, examples, accelerator, batch_size=batch_size)

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
            if _have_groups(rows):
                groups = [row["group"] for row in rows]
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


def _have_groups(rows: Sequence[Row]) -> bool:
    return all("group" in row for row in rows)


class ScoringTask(ClassificationTask):
    """Gives each row a score, by squared error; its outputs are the scores.

    Rows have ``score``, a number. With a ``group`` in every row, the scores rank each group's rows.
    """

    target = "score"
    class_column = None
    kinds = (int, float)

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn the mean and the spread of the scores: the model predicts them standardised."""
        scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
        deviation = float(scores.std(correction=0))
        if not deviation > 0:
            raise DataError("every row has the same score: there is nothing to learn")
        self.learned.setdefault("labels", ["score"])
        self.learned.setdefault("mean", float(scores.mean()))
        self.learned.setdefault("deviation", deviation)

    @property
    def loss(self) -> Loss:
        """Squared error of the standardised score."""
        return regression_loss(self.config.loss)

    def _numbers(self, rows: Sequence[Row]) -> list[Any]:
        """Return each row's standardised score, (score - mean) / deviation."""
        mean, deviation = self.learned["mean"], self.learned["deviation"]
        numbers = []
        for row in rows:
            is_scored = "score" in row
            numbers.append((float(row["score"]) - mean) / deviation if is_scored else IGNORED)
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
        if _have_groups(rows):
            groups = [row["group"] for row in rows]
            gains = [max(0.0, score) for score in true]  # a gain is not negative
            metrics |= ranking_metrics(groups, gains, outputs)
        return Measurement(metrics, [f"{score:.3g}" for score in outputs])
