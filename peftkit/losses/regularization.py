"""Regularisers that wrap a loss: R-Drop, and adversarial training on the input embeddings."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from peftkit.config.task_sections import LossSettings
from peftkit.errors import ConfigError
from peftkit.losses.base import Batch, Loss, weighted_sum
from peftkit.random_state import device_generator


@runtime_checkable
class LogitLoss(Loss, Protocol):
    """A loss that compares distributions over classes or tokens: `loss` is
    `loss_of(logits(model, batch), batch)`.
    """

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of the supervised items alone, (items, classes)."""

    def sum_from(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the losses of the supervised items, a scalar, from their logits."""

    def weights(self, batch: Batch) -> Tensor | None:
        """Return the weights of the supervised items, (items,), or None where each is 1."""


def regularized(loss: Loss, settings: LossSettings) -> Loss:
    """Return the loss in the regularisers that the settings ask for.

    Raises:
        ConfigError: R-Drop is asked for and the loss has no distributions.
    """
    if settings.r_drop:
        loss = RDrop(loss, settings.r_drop)
    if settings.adversarial is not None:
        loss = Adversarial(
            loss, settings.adversarial, settings.adversarial_radius, settings.adversarial_steps
        )
    return loss


class _Regularizer:
    """The parts of a loss that a regulariser passes on."""

    loss: Loss

    @property
    def is_language_model(self) -> bool:
        """Whether exp(loss) is a perplexity."""
        return getattr(self.loss, "is_language_model", False)

    @property
    def unit(self) -> str:
        """What the supervised items are called."""
        return getattr(self.loss, "unit", "examples")

    def count(self, batch: Batch) -> float:
        """Return the number of supervised items of a batch, or the sum of their weights."""
        return self.loss.count(batch)


class RDrop(_Regularizer):
    """R-Drop (arXiv:2106.14448, eq. 2-4): two passes with different dropout are drawn together.

    With P and Q the distributions of the two passes,

        loss = (loss(P) + loss(Q)) / 2 + weight x D
        D = sum over supervised items of their weight x (KL(P || Q) + KL(Q || P)) / 2

    The paper adds the two losses up, so its alpha is 2 x `weight`; the mean keeps the scale of
    learning rates. Outside training (eval mode, or no gradients) there is one pass and the plain
    loss.

    The batch goes through the model twice, and not doubled once: dropout that a batch shares (of a
    prefix, or of a whole layer) would be the same in both halves, statistics over a batch would mix
    them, and not every input has the batch in its first dimension. DDP allows two forwards before
    one backward. The activations of both passes are held at once, as many as those of a doubled
    batch.

    Args:
        loss: A loss over distributions, such as ClassificationLoss.
        weight: Greater than 0.

    Raises:
        ConfigError: the loss has no distributions, the weight is not positive, or (at the
            first loss in training) no dropout is at work in the model.
    """

    loss: LogitLoss

    def __init__(self, loss: Loss, weight: float) -> None:
        if not isinstance(loss, LogitLoss):
            name = type(loss).__name__
            raise ConfigError(
                f"R-Drop compares distributions, and {name} does not give their logits: set "
                "loss.r_drop 0"
            )
        if weight <= 0:
            raise ConfigError(f"R-Drop's weight is {weight}; it must be greater than 0")
        self.loss = loss
        self.weight = weight
        self._is_checked = False

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the regularised loss in training, the plain loss otherwise."""
        if not _is_training(model):
            return self.loss.sum(model, batch)
        first = self._checked_logits(model, batch)
        second = self.loss.logits(model, batch)
        mean = (self.loss.sum_from(first, batch) + self.loss.sum_from(second, batch)) / 2
        divergence = symmetric_divergence(first, second, self.loss.weights(batch))
        return mean + self.weight * divergence

    def _checked_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._is_checked:
            return self.loss.logits(model, batch)
        generator = device_generator(next(model.parameters()).device)
        before = generator.get_state()
        logits = self.loss.logits(model, batch)
        if torch.equal(before, generator.get_state()):
            raise ConfigError(
                "R-Drop needs dropout and the model has none: set the adapter's "
                "(adapter.lora_dropout, adapter.dropout, or adapter.options.prefix_dropout), e.g. "
                "to 0.1"
            )
        self._is_checked = True
        return logits


def symmetric_divergence(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum over rows of (KL(P || Q) + KL(Q || P)) / 2, in nats.

    Args:
        first: Logits of P, (items, classes).
        second: Logits of Q, (items, classes).
        weights: Of each item's divergence, (items,); None is 1 for each.
    """
    log_p, log_q = _log_softmax(first), _log_softmax(second)
    return (_divergence(log_p, log_q, weights) + _divergence(log_q, log_p, weights)) / 2


def _divergence(log_p: Tensor, log_q: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum over items of KL(P || Q), each times its weight."""
    if weights is None:
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return weighted_sum(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1), weights)


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log_softmax over the last dimension, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@dataclasses.dataclass(frozen=True)
class Adversarial(_Regularizer):
    """Adversarial training on the input embeddings.

        loss = (clean loss + loss at the worst perturbation found) / 2

    With g the gradient of the loss with respect to one example's embedded sequence, "fgm" perturbs
    that by r = radius g / ||g||_2 (arXiv:1605.07725, eq. 5, on embeddings as they are, not
    normalised). "pgd" takes `steps` such steps of length `step_size` from r = 0, each from a new
    gradient and projected onto the ball ||r||_2 <= radius (arXiv:1706.06083, eq. 1, in L2). Norms
    are over all positions of the sequence, one for each example; an example without a gradient is
    not perturbed.

    The first paper adds the two losses up (sec. 4; eq. 6 is the adversarial one). Their mean has
    the same direction and keeps the scale of losses, learning rates and `clip_norm`. Outside
    training (eval mode, or no gradients) there is one pass and the plain loss.

    Every pass draws its own dropout. "fgm" makes two passes and holds the activations of both;
    "pgd" makes steps + 1. No parameter and no ``.grad`` is touched on the way. In an
    encoder-decoder the encoder's input is perturbed; in a vision model the output of the patch
    embedding; in a speech model that of the encoder's first layer.

    Args:
        loss: The loss; with R-Drop in it, each of its passes is perturbed by itself.
        kind: "fgm" or "pgd".
        radius: L2 norm of a perturbation (pgd: the largest), greater than 0, in the units of the
            embeddings.
        steps: Gradients that pgd takes, at least 1; fgm takes one.
        step_size: Length of pgd's steps; None is 2.5 radius / steps, as the paper's evaluations.

    Raises:
        ConfigError: a value is out of bounds; or, from `loss`, the model has no input embeddings
            that can be perturbed.
    """

    loss: Loss
    kind: Literal["fgm", "pgd"] = "fgm"
    radius: float = 0.1
    steps: int = 3
    step_size: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("fgm", "pgd"):
            raise ConfigError(f"Adversarial: kind is {self.kind!r}; it must be 'fgm' or 'pgd'")
        if (
            self.radius <= 0
            or self.steps < 1
            or (self.step_size is not None and self.step_size <= 0)
        ):
            raise ConfigError(
                "Adversarial: radius and step_size must be greater than 0, and steps at least 1"
            )

    def sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of clean and adversarial loss in training, the plain loss otherwise."""
        if not _is_training(model):
            return self.loss.sum(model, batch)
        # DDP must not see a forward pass that no backward pass follows.
        inner = extract_model_from_parallel(model)
        is_fgm = self.kind == "fgm"
        steps = 1 if is_fgm else self.steps
        length = self.radius if is_fgm else self.step_size or 2.5 * self.radius / steps
        with _Shifted(inner, batch) as shifted:
            clean = self.loss.sum(model, batch)
        gradients = torch.autograd.grad(clean, shifted.shifts, retain_graph=True)
        shifts = shifted.moved(gradients, length, self.radius)
        for _ in range(steps - 1):
            with _Shifted(inner, batch, shifts) as shifted:
                perturbed = self.loss.sum(inner, batch)
            shifts = shifted.moved(
                torch.autograd.grad(perturbed, shifted.shifts), length, self.radius
            )
        with _Shifted(inner, batch, shifts):
            adversarial = self.loss.sum(model, batch)
        return (clean + adversarial) / 2


class _Shifted:
    """Context in which a shift is added to the output of the input embeddings.

    `shifts` holds the shifts of all calls in order, float32 leaves that get gradients.

    Args:
        model: The model.
        batch: What it is called with.
        given: The shifts; None is zeros.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, given: Sequence[Tensor] | None = None
    ) -> None:
        self._embeddings = _input_embeddings(model)
        name = getattr(model, "main_input_name", "input_ids")
        if name not in batch:
            raise ConfigError(
                f"adversarial training perturbs the embedded {name}, which the batch does not have"
            )
        self._rows = batch[name]
        self._given = given
        self._handle: RemovableHandle | None = None
        self._axes: list[int] = []
        self.shifts: list[Tensor] = []

    def __enter__(self) -> "_Shifted":
        self._handle = self._embeddings.register_forward_hook(self._shift)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._handle is not None
        self._handle.remove()
        if kind is None and not self.shifts:
            raise ConfigError(
                f"adversarial training perturbs the output of {type(self._embeddings).__name__}, "
                "and the model's forward does not call it: set loss.adversarial null"
            )

    def _shift(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        axis = _batch_axis(arguments[0], self._rows)
        if first.shape[axis] != len(self._rows):
            raise ConfigError(
                f"{type(module).__name__} returns {tuple(first.shape)} for {len(self._rows)} "
                "examples, so adversarial training cannot tell which part belongs to which one; "
                "set loss.adversarial null"
            )
        if self._given is None:
            shift = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        else:
            shift = self._given[len(self.shifts)]
        self.shifts.append(shift.detach().requires_grad_())
        self._axes.append(axis)
        shifted = (first + self.shifts[-1]).to(first.dtype)
        return (shifted, *rest) if isinstance(output, tuple) else shifted

    def moved(self, gradients: Sequence[Tensor], length: float, radius: float) -> list[Tensor]:
        """Return the shifts after one step along the gradients, projected onto the ball.

            r <- r + length g / ||g||,   r <- r radius / max(||r||, radius)

        with norms over all dimensions but that of the examples.
        """
        moved = []
        for shift, gradient, axis in zip(self.shifts, gradients, self._axes, strict=True):
            others = [dimension for dimension in range(shift.ndim) if dimension != axis]
            stepped = shift.detach() + length * _normalized(gradient, others)
            norm = torch.linalg.vector_norm(stepped, dim=others, keepdim=True)
            moved.append(stepped * (radius / norm.clamp(min=radius)))
        return moved


def _normalized(gradient: Tensor, dimensions: list[int]) -> Tensor:
    """Return g / ||g||_2 over some dimensions, and zero where g is zero.

    g is divided by its largest element first: the squares of a tiny g would be lost in float32.
    """
    largest = gradient.abs().amax(dimensions, keepdim=True)
    scaled = gradient / largest.where(largest > 0, 1.0)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=dimensions, keepdim=True)
    return scaled / norm.clamp(min=1.0)


def _batch_axis(given: Tensor, rows: Tensor) -> int:
    """Return the dimension of the examples in the input of the embeddings.

    XLNet transposes its input first.
    """
    is_transposed = rows.ndim == 2 and not torch.equal(given, rows) and torch.equal(given, rows.T)
    return int(is_transposed)


def _input_embeddings(model: Any) -> nn.Module:
    """Return the first module that the model's main input reaches, of the encoder if it has one.

    Raises:
        ConfigError: the model does not name one.
    """
    try:
        is_encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
        part = model.get_encoder() if is_encoder_decoder else model
        embeddings: nn.Module = part.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        raise ConfigError(
            "adversarial training perturbs the input embeddings, and this model names none: set "
            "loss.adversarial null"
        ) from None
    return embeddings


def _is_training(model: nn.Module) -> bool:
    return model.training and torch.is_grad_enabled()
