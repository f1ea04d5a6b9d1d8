"""AdaLoRA's training (arXiv:2303.10512, Algorithm 1): the penalty, the importance of triplets, and
the falling budget.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor, nn
from torch.optim import Optimizer

from peftkit.errors import CheckpointError, ConfigError
from peftkit.methods.adalora.layer import TRIPLET_DIMENSION, AdaLoraLinear, replace_data
from peftkit.methods.adalora.model import AdaLoraTuner
from peftkit.methods.method import MethodTraining
from peftkit.recording import note


def budget(step: int, initial: int, target: int, tinit: int, tfinal: int, total_steps: int) -> int:
    """Return b(t), the triplets to keep in all layers together after step t = 1 ... total_steps
    (Eq. 12).

    ``initial`` before `tinit`, ``target`` from ``total_steps - tfinal`` on, and between them a
    cubic fall, b(T) + (b(0) - b(T)) (1 - (t - tinit) / (T - tfinal - tinit))^3, rounded down. The
    paper prints t - tinit - tfinal in the numerator, with which b would jump at both ends; its
    authors' code, and PEFT, have t - tinit.
    """
    if step < tinit:
        return initial
    if step >= total_steps - tfinal:
        return target
    remaining = 1 - (step - tinit) / (total_steps - tfinal - tinit)
    return int((initial - target) * remaining**3 + target)


def penalty_gradient(matrix: Tensor, weight: float, kept: Tensor | None = None) -> Tensor:
    """Return the gradient of weight x ||M M^T - I||_F with respect to M, (r, n): 2 weight (M M^T -
    I) M / ||M M^T - I||_F.

    Where the norm is zero, so is the gradient. `kept`, booleans of shape (r,), leaves the other
    rows of M out.
    """
    if kept is not None:
        matrix = matrix * kept.unsqueeze(1)
    excess = matrix @ matrix.T
    excess.diagonal().sub_(1.0 if kept is None else kept.to(excess.dtype))
    norm = excess.norm().clamp_min(torch.finfo(excess.dtype).tiny)
    gradient: Tensor = (excess * (2.0 * weight / norm)) @ matrix
    return gradient


class Allocation(MethodTraining):
    """Takes an AdaLoRA adapter through a training: call `before_step` before each optimiser step
    and `after_step` after it.

    `before_step` adds the gradient of the penalty, orth_reg_weight x mean over all P and Q of ||P^T P - I||_F and
    ||Q Q^T - I||_F, to that of the loss. No loss that anybody reports contains it, and clipping, which comes earlier, does not
    see it. (The norms of Eq. 4 are squared and summed; PEFT and the authors' code, with which the published weights were
    found, take the mean of the plain norms, and so does this: orth_reg_weight means what it means there.) Then it updates,
    for every weight w of a triplet, the smoothed sensitivity I = |w dL/dw| (Eq. 8, 9) and its uncertainty (Eq. 10).

    `after_step` keeps the b(t) most important triplets of all layers together (Eq. 7, 11) and sets
    the singular values of the others to zero, from where they may come back, every ``deltaT`` steps
    after ``tinit``. At ``total_steps - tfinal`` the others leave the parameters and the optimiser's
    state, and ``rank_pattern`` says so: training goes on as it would with singular values held at
    zero. Where that cannot be (`in_place` is False, or the optimiser's state has another layout
    than the weights), they are held at zero, and `finish` takes them out after the training.

    For a model without a trainable AdaLoRA adapter, every method does nothing.

    Args:
        model: What `attach` or `load` returned. Its config's ``total_step`` becomes `total_steps`.
        optimizer: The optimiser of the adapter's parameters.
        total_steps: Optimiser steps of the whole training.
        in_place: False where parameters must keep their shapes, as under DistributedDataParallel.

    Raises:
        ConfigError: ``tinit`` and ``tfinal`` leave no step for the budget to fall; PEFT itself has
            attached the adapter; or the parameters are shards.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, total_steps: int, *, in_place: bool = True
    ) -> None:
        self.optimizer, self.total_steps, self.in_place = optimizer, total_steps, in_place
        self.history: list[tuple[int, Tensor]] = []
        self.kept: list[Tensor] | None = None
        self.is_final = True
        self._adapter, self.layers = _trainable_layers(model)
        if not self.layers:
            return
        for module in model.modules():
            if isinstance(module, AdaLoraTuner):
                module.is_driven = True
        self.config = next(iter(self.layers.values())).config[self._adapter]
        self._check_whole()
        self.initial, self.target = self._total_rank(), self.config.target_r * len(self.layers)
        self.is_final = self.initial <= self.target
        if not self.is_final and self.config.tinit >= total_steps - self.config.tfinal:
            raise ConfigError(
                f"AdaLoRA's budget has no step to fall in: tinit is {self.config.tinit} and tfinal {self.config.tfinal}, "
                f"and the training has {total_steps} steps; make them smaller"
            )
        self.config.total_step = total_steps
        self._sensitivity = self._each(torch.zeros_like)
        self._uncertainty = self._each(torch.zeros_like)
        described = ("tinit", "tfinal", "deltaT", "orth_reg_weight")
        schedule = {name: getattr(self.config, name) for name in described}
        note(
            model,
            "allocation",
            {
                "initial": self.initial,
                "target": self.target,
                "total_steps": total_steps,
                **schedule,
            },
        )

    @torch.no_grad()
    def before_step(self, *, finite: bool = True) -> None:
        """Add the penalty's gradient and measure the sensitivity. `finite` is False where a float16
        step will be skipped.
        """
        if not finite:
            return
        for number, layer in enumerate(self.layers.values()):
            self._add_penalty(layer, None if self.kept is None else self.kept[number])
        if not self.is_final:
            self._measure()

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Allocate the budget of `step`, the number of steps done so far; tell whether it has just
        become final.
        """
        if self.is_final:
            self._mask()
            return False
        ends = step >= self.total_steps - self.config.tfinal
        if ends or (step > self.config.tinit and step % self.config.deltaT == 0):
            self._keep_best(self.budget(step))
            self._mask()
            if ends or step % max(1, self.total_steps // 100) == 0:
                self.history.append((step, self._counts()))
        self.is_final = bool(ends)
        if ends:
            self._sensitivity, self._uncertainty = [], []
            if self.in_place and self._state_is_like_the_weights():
                self._prune()
        else:
            self.kept = None
        return self.is_final

    def finish(self) -> None:
        """After the training, take out what was held at zero."""
        if self.is_final and self.kept is not None:
            self._prune()

    def budget(self, step: int) -> int:
        """Return the number of triplets that all layers keep together after `step` steps."""
        tinit, tfinal = self.config.tinit, self.config.tfinal
        return budget(step, self.initial, self.target, tinit, tfinal, self.total_steps)

    def rank_map(self) -> dict[int, dict[str, int]]:
        """Return how many triplets each layer kept after which step: some hundred steps of the
        fall, and its end.
        """
        return {
            step: dict(zip(self.layers, counts.tolist(), strict=True))
            for step, counts in self.history
        }

    # a checkpoint's part

    def logged(self, step: int) -> dict[str, Any] | None:
        """Return the ranks of the layers, where `step` has changed them.

        The history has some hundred steps of the fall.
        """
        last = self.history[-2:]
        if not last or last[-1][0] != step:
            return None
        if len(last) == 2 and torch.equal(last[0][1], last[1][1]):
            return None
        return {"kind": "ranks", "ranks": self.rank_map()[step]}

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beside weights and optimiser, for `load_state`; empty
        without AdaLoRA.
        """
        if not self.layers:
            return {}
        steps = torch.tensor([step for step, _ in self.history], dtype=torch.int64)
        counts = [each.cpu() for _, each in self.history]
        tensors = {
            "history.steps": steps,
            "history.ranks": torch.stack(counts)
            if counts
            else torch.zeros(0, len(self.layers), dtype=torch.int64),
        }
        names = self._names()
        tensors |= {
            f"sensitivity.{name}": value
            for name, value in zip(names, self._sensitivity, strict=False)
        }
        tensors |= {
            f"uncertainty.{name}": value
            for name, value in zip(names, self._uncertainty, strict=False)
        }
        if self.is_final and self.kept is not None:
            tensors |= {
                f"kept.{name}": kept for name, kept in zip(self.layers, self.kept, strict=True)
            }
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned; the weights have been loaded before.

        Raises:
            CheckpointError: it is the state of another adapter.
        """
        if not self.layers:
            return
        device, names = self.parameters()[0].device, self._names()
        kept = [
            tensors[f"kept.{name}"].to(device) for name in self.layers if f"kept.{name}" in tensors
        ]
        self.is_final = self._total_rank() <= self.target or bool(kept)
        self.kept = kept or None
        needed = [] if self.is_final else names
        parameters = [] if self.is_final else self.parameters()
        for part in ("sensitivity", "uncertainty"):
            values = [tensors.get(f"{part}.{name}") for name in needed]
            if any(
                value is None or value.shape != p.shape
                for value, p in zip(values, parameters, strict=True)
            ):
                raise CheckpointError(
                    "the checkpoint's AdaLoRA importance is not that of this model's adapter"
                )
            setattr(
                self,
                f"_{part}",
                [v.to(p.device) for v, p in zip(values, parameters, strict=True) if v is not None],
            )
        self.history = list(
            zip(tensors["history.steps"].tolist(), tensors["history.ranks"].unbind(), strict=True)
        )

    # the parts of a step

    def _add_penalty(self, layer: AdaLoraLinear, kept: Tensor | None) -> None:
        """Add the penalty's gradient for one layer's Q, lora_A, and P, lora_B."""
        weight = self.config.orth_reg_weight / (2 * len(self.layers))
        for key in ("lora_A", "lora_B"):
            matrix = getattr(layer, key)[self._adapter]
            if not matrix.numel():
                matrix.grad = None  # no kernel need be ready for empty tensors
            elif weight and matrix.requires_grad:
                rows = matrix if key == "lora_A" else matrix.T
                gradient = penalty_gradient(rows, weight, kept)
                gradient = gradient if key == "lora_A" else gradient.T
                matrix.grad = (
                    gradient.contiguous() if matrix.grad is None else matrix.grad.add_(gradient)
                )

    def _measure(self) -> None:
        """Update sensitivity and uncertainty; what a step has not used has a gradient of zero."""
        parameters = self.parameters()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sensitivity = torch._foreach_mul([p.detach() for p in parameters], gradients)
        torch._foreach_abs_(sensitivity)
        torch._foreach_lerp_(self._sensitivity, sensitivity, 1 - self.config.beta1)
        torch._foreach_sub_(sensitivity, self._sensitivity)
        torch._foreach_abs_(sensitivity)
        torch._foreach_lerp_(self._uncertainty, sensitivity, 1 - self.config.beta2)

    def importance(self) -> list[Tensor]:
        """Return, for each layer, the importance of its triplets, shape (r,): S = s(Λ) + mean s(P)
        + mean s(Q) (Eq. 7).
        """
        scores = torch._foreach_mul(self._sensitivity, self._uncertainty)
        triplets = zip(scores[0::3], scores[1::3], scores[2::3], strict=True)
        return [a.mean(1) + e.flatten() + b.mean(0) for a, e, b in triplets]

    def _keep_best(self, count: int) -> None:
        """Choose the `count` most important triplets of all layers together, and no more where
        several are as important.
        """
        scores = self.importance()
        together = torch.cat([score.to(scores[0].device) for score in scores])
        kept = torch.zeros_like(together, dtype=torch.bool)
        kept[together.topk(count).indices] = True
        self.kept = [
            part.to(s.device)
            for part, s in zip(torch.split(kept, [len(s) for s in scores]), scores, strict=True)
        ]

    def _counts(self) -> Tensor:
        return (
            torch.stack([kept.sum().to(self.kept[0].device) for kept in self.kept])
            if self.kept
            else torch.zeros(0)
        )

    def _mask(self) -> None:
        for layer, kept in zip(self.layers.values(), self.kept or (), strict=False):
            layer.lora_E[self._adapter].masked_fill_(~kept.unsqueeze(1), 0.0)

    def _prune(self) -> None:
        """Take the triplets that are not kept out of parameters, optimiser state and config."""
        for layer, kept in zip(self.layers.values(), self.kept or (), strict=True):
            triplets = kept.nonzero().flatten()
            for key, dim in TRIPLET_DIMENSION.items():
                parameter = getattr(layer, key)[self._adapter]
                state = self.optimizer.state.get(parameter, {})
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = value.index_select(dim, triplets)
                replace_data(parameter, parameter.data.index_select(dim, triplets))
            layer.note_rank(self._adapter, len(triplets))
        self.kept = None

    # what it works on

    def _each(self, make: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return (
            [] if self.is_final else [make(parameter.detach()) for parameter in self.parameters()]
        )

    def parameters(self) -> list[nn.Parameter]:
        """Return what it works on: A, E, B of the first layer, of the second, and so on."""
        return [
            getattr(layer, key)[self._adapter]
            for layer in self.layers.values()
            for key in TRIPLET_DIMENSION
        ]

    def _names(self) -> list[str]:
        return [f"{name}.{key}" for name in self.layers for key in TRIPLET_DIMENSION]

    def _total_rank(self) -> int:
        return sum(layer.r[self._adapter] for layer in self.layers.values())

    def _state_is_like_the_weights(self) -> bool:
        states = [
            (p, value)
            for p in self.parameters()
            for value in self.optimizer.state.get(p, {}).values()
        ]
        tensors = [
            (p, value) for p, value in states if isinstance(value, Tensor) and value.numel() > 1
        ]
        return all(value.shape == p.shape and value.is_floating_point() for p, value in tensors)

    def _check_whole(self) -> None:
        for parameter in self.parameters():
            if type(parameter) is not nn.Parameter or hasattr(parameter, "ds_id"):
                raise ConfigError(
                    "AdaLoRA ranks whole triplets and cannot see them in sharded parameters (FSDP2, DeepSpeed ZeRO-3); "
                    "train it on one process, or with DistributedDataParallel"
                )


def _trainable_layers(model: nn.Module) -> tuple[str, dict[str, AdaLoraLinear]]:
    """Return the adapter that is trained, "" where there is none, and its layers by name."""
    adapter, layers = "", {}
    for module in model.modules():
        if isinstance(module, AdaLoraLayer):
            values = module.get_submodule("lora_E").named_parameters()
            trained = [name for name, parameter in values if parameter.requires_grad]
            if trained and not isinstance(module, AdaLoraLinear):
                raise ConfigError(
                    "PEFT itself has attached this AdaLoRA adapter, and its layers add the penalty to the loss; attach it "
                    "with peftkit.attach, or load it with peftkit.load"
                )
            if trained:
                adapter, layers[module.name] = trained[0], module
    return adapter, layers
