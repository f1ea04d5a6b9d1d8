"""Losses over classes and numbers, as sums over items.

Cross-entropy may be weighted, focal, smoothed and distilled; numbers have the squared error.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.config.task_sections import LossSettings, TeacherSettings
from peftkit.errors import ConfigError, DataError, nearest
from peftkit.labels import IGNORED
from peftkit.losses.base import WEIGHTS, Batch, Loss, total_weight, weighted_sum
from peftkit.losses.regularization import regularized

_TARGETS = ("labels", "teacher", WEIGHTS)


@dataclasses.dataclass(frozen=True)
class ClassificationLoss:
    """Cross-entropy of each labelled item, in nats, summed.

    An item is a text, an image or a token.
    With p the softmax of an item's logits and y its label, its loss is

        hard = w_y (1 - p_y)^gamma CE,   CE = -(1 - e) log p_y - e/K sum_c log p_c

    with class weights w, focal gamma (arXiv:1708.02002, eq. 4-5) and smoothing e over K classes
    (arXiv:1512.00567, sec. 7). The loop divides the sum by the count of items, not by the sum of
    their weights: with weights whose mean over the training set is 1 (`balanced_weights`), losses
    and learning rates stay on the scale of the unweighted loss, and how a step is cut does not
    matter.

    A batch may hold the probabilities q of a teacher. Then (arXiv:1503.02531, sec. 2), at
    temperature T,

        loss = (1 - v) hard + v T^2 KL(q_T || p_T)
        q_T = softmax(log q / T),   p_T = softmax(logits / T)

    with v = `teacher_weight`. An item with a teacher and without a label has v = 1: it is learned
    from the teacher alone, whatever `teacher_weight` is. Class weights, gamma and smoothing concern
    labels, not the teacher.

    A batch holds ``labels``, -100 where there is none: (batch,) for logits (batch, classes), or
    (batch, tokens) for logits (batch, tokens, classes). ``teacher``, (batch[, tokens], classes),
    holds probabilities; a row of zeros is no teacher. The rest is given to the model. The loss is
    computed in float32, or in float64 for a float64 model.

    ``weights``, of the labels' shape, multiply the loss of each item, and the loop divides by their
    sum.

    Args:
        class_weights: (classes,), greater than 0; None is 1 for each.
        label_smoothing: e, at least 0 and less than 1.
        focal_gamma: At least 0; 0 is cross-entropy.
        teacher_weight: v, from 0 to 1.
        temperature: T, greater than 0.

    Raises:
        ConfigError: a value is out of bounds.
    """

    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    teacher_weight: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            (
                0 <= self.label_smoothing < 1,
                f"label_smoothing is {self.label_smoothing}, not in [0, 1)",
            ),
            (self.focal_gamma >= 0, f"focal_gamma is {self.focal_gamma}, less than 0"),
            (
                0 <= self.teacher_weight <= 1,
                f"teacher_weight is {self.teacher_weight}, not in [0, 1]",
            ),
            (self.temperature > 0, f"temperature is {self.temperature}, not greater than 0"),
            (
                self.class_weights is None or bool((self.class_weights > 0).all()),
                "class_weights must be greater than 0",
            ),
        ]
        wrong = [what for holds, what in problems if not holds]
        if wrong:
            raise ConfigError("ClassificationLoss: " + "; ".join(wrong))

    def count(self, batch: Batch) -> float:
        """Return the number, or the sum of the weights, of items with a label or a teacher."""
        return total_weight(_has_target(batch), batch.get(WEIGHTS))

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed loss; without a supervised item, a zero that has a gradient."""
        return self.sum_from(self.logits(model, batch), batch)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of the supervised items alone, (items, classes)."""
        logits: Tensor = model(**_inputs(batch)).logits
        has_target = _has_target(batch)
        if logits.shape[:-1] != has_target.shape:
            raise ConfigError(
                f"logits of shape {tuple(logits.shape)} and labels of shape "
                f"{tuple(has_target.shape)} do not go together: labels need all dimensions of the "
                "logits but the last"
            )
        return _at_least_float32(logits[has_target])

    def sum_from(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the summed loss of the supervised items' logits, (items, classes)."""
        has_target = _has_target(batch)
        labels = batch["labels"][has_target]  # [items]
        has_label = labels != IGNORED
        hard = self._hard(logits, labels.where(has_label, 0)).where(has_label, 0.0)
        weights = self.weights(batch)
        if "teacher" not in batch:
            return weighted_sum(hard, weights)
        teacher = batch["teacher"][has_target].to(logits)  # [items, classes]
        # v of each item: 1 without a label, 0 without a teacher
        v = torch.where(has_label, self.teacher_weight, 1.0) * _is_taught(teacher)
        return weighted_sum((1 - v) * hard + v * self._distilled(logits, teacher), weights)

    def weights(self, batch: Batch) -> Tensor | None:
        """Return the weights of the supervised items, (items,), or None where each is 1."""
        return batch[WEIGHTS][_has_target(batch)] if WEIGHTS in batch else None

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return w_y (1 - p_y)^gamma CE of each item, (items,)."""
        loss = F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.focal_gamma:
            log_p = -F.cross_entropy(logits, labels, reduction="none")
            missing = -torch.expm1(log_p)  # 1 - p_y, without cancellation
            # A power below 1 has no gradient at zero.
            missing = missing.clamp(min=torch.finfo(logits.dtype).tiny)
            loss = loss * missing**self.focal_gamma
        if self.class_weights is not None:
            if len(self.class_weights) != logits.shape[-1]:
                raise ConfigError(
                    f"{len(self.class_weights)} class weights for {logits.shape[-1]} classes"
                )
            loss = loss * self.class_weights.to(logits)[labels]
        return loss

    def _distilled(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return T^2 KL(q_T || p_T) of each item, (items,)."""
        log_q = teacher.log().where(_is_taught(teacher)[:, None], 0.0)
        q = (log_q / self.temperature).softmax(-1)
        log_p = (logits / self.temperature).log_softmax(-1)
        divergence = F.kl_div(log_p, q, reduction="none")  # [items, classes]
        return divergence.sum(-1) * self.temperature**2


@dataclasses.dataclass(frozen=True)
class RegressionLoss:
    """The squared error of each labelled item, summed.

    A batch holds ``labels``, (batch,), floats, -100 where there is none; and perhaps ``weights``,
    (batch,), that multiply the errors.
    """

    def count(self, batch: Batch) -> float:
        """Return the number of labels that are not -100, or the sum of their weights."""
        return total_weight(batch["labels"] != IGNORED, batch.get(WEIGHTS))

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed squared error of the model's logits, (batch, 1).

        Raises:
            ConfigError: the model has more than one output.
        """
        logits: Tensor = model(**_inputs(batch)).logits
        if logits.shape != (*batch["labels"].shape, 1):
            raise ConfigError(
                f"a regression needs one logit for each label; the model returns "
                f"{tuple(logits.shape)} for labels {tuple(batch['labels'].shape)}: load it with "
                "num_labels=1"
            )
        supervised = batch["labels"] != IGNORED
        predicted = _at_least_float32(logits[supervised].squeeze(-1))
        errors = (predicted - batch["labels"][supervised].to(predicted)).square()
        weights = batch.get(WEIGHTS)
        return weighted_sum(errors, None if weights is None else weights[supervised])


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return n / (K n_c) for each class c, as scikit-learn's "balanced".

    n is the number of items, n_c that of class c, and K the number of classes that occur. The mean
    weight over the training items is 1. A class that does not occur weighs 1.

    Args:
        counts: n_c for each class.

    Returns:
        (classes,), float32.

    Raises:
        DataError: there is no item.
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    if not numbers.sum() > 0:
        raise DataError("there is no label to balance class weights by")
    weights = numbers.sum() / ((numbers > 0).sum() * numbers)
    return weights.where(numbers > 0, 1.0).float()


def classification_loss(
    settings: LossSettings,
    labels: Sequence[str],
    counts: Sequence[int],
    teacher: TeacherSettings | None = None,
) -> Loss:
    """Return the classification loss in the regularisers that a recipe asks for.

    Args:
        settings: The section `loss`.
        labels: The classes in the order of their numbers.
        counts: How many training items each class has.
        teacher: The section `teacher`, if the recipe has one.

    Raises:
        ConfigError: a class weight names no label.
        DataError: there are no labels to balance weights by.
    """
    weights = None
    if settings.class_weights == "balanced":
        weights = balanced_weights(counts)
    elif settings.class_weights is not None:
        weights = named_weights(settings.class_weights, labels)
    loss = ClassificationLoss(weights, settings.label_smoothing, settings.focal_gamma)
    if teacher is not None:
        loss = dataclasses.replace(
            loss, teacher_weight=teacher.weight, temperature=teacher.temperature
        )
    return regularized(loss, settings)


def regression_loss(settings: LossSettings) -> Loss:
    """Return the squared error, in adversarial training where the section `loss` asks for it.

    Raises:
        ConfigError: a setting is for classes only.
    """
    for name in ("class_weights", "label_smoothing", "focal_gamma", "r_drop"):
        if getattr(settings, name):
            raise ConfigError(f"loss.{name} is for classes, and a score has none")
    return regularized(RegressionLoss(), settings)


def named_weights(weights: Mapping[str, float], labels: Sequence[str]) -> Tensor:
    """Return the weight of each label, (classes,), in the order of `labels`; 1 if it has none.

    Raises:
        ConfigError: a name is not a label.
    """
    for name in weights:
        if name not in labels:
            raise ConfigError(
                f"loss.class_weights names {name!r}, which is no label{nearest(name, labels)}"
            )
    return torch.tensor([weights.get(label, 1.0) for label in labels])


def _inputs(batch: Batch) -> dict[str, Any]:
    """Return the part of a batch that the model takes."""
    return {name: value for name, value in batch.items() if name not in _TARGETS}


def _has_target(batch: Batch) -> Tensor:
    """Return which items have a label or a teacher, booleans of the labels' shape."""
    has_label = batch["labels"] != IGNORED
    return has_label | _is_taught(batch["teacher"]) if "teacher" in batch else has_label


def _is_taught(teacher: Tensor) -> Tensor:
    """Return which items have a teacher; a row of zeros, (..., classes), is none."""
    return (teacher > 0).any(-1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
