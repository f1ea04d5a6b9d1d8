"""AdaLoRA's training (arXiv:2303.10512, Algorithm 1): penalty, importance, budget and pruning."""

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
    """Return b(t), the number of triplets that all layers keep after step t = 1 ... T (Eq. 12).

    It is ``initial`` before `tinit`, and ``target`` from ``T - tfinal`` on. In between it falls:
    b(t) = b(T) + (b(0) - b(T)) (1 - (t - tinit) / (T - tfinal - tinit))^3, rounded down. The paper
    prints t - tinit - tfinal in the numerator, with which b would jump at both ends. The authors'
    code and PEFT have t - tinit.
    """
    if step < tinit:
        return initial
    if step >= total_steps - tfinal:
        return target
    remaining = 1 - (step - tinit) / (total_steps - tfinal - tinit)  # from 1 down to 0
    return int((initial - target) * remaining**3 + target)


def penalty_gradient(matrix: Tensor, weight: float, kept: Tensor | None = None) -> Tensor:
    """Return the gradient of weight x ||M M^T - I||_F with respect to M (r, n).

    It is 2 weight (M M^T - I) M / ||M M^T - I||_F, and zero where the norm is zero.

    Args:
        matrix: M, (r, n).
        weight: The penalty's weight.
        kept: Booleans (r,); the other rows of M are left out.
    """
    if kept is not None:
        matrix = matrix * kept.unsqueeze(1)
    excess = matrix @ matrix.T  # (r, r)
    excess.diagonal().sub_(1.0 if kept is None else kept.to(excess.dtype))  # M M^T - I
    norm = excess.norm().clamp_min(torch.finfo(excess.dtype).tiny)
    gradient: Tensor = (excess * (2.0 * weight / norm)) @ matrix  # (r, n)
    return gradient


class Allocation(MethodTraining):
    """Takes an AdaLoRA adapter through a training.

    Call `before_step` before each optimizer step, and `after_step` after it.

    `before_step` adds the gradient of the penalty to that of the loss: orth_reg_weight x mean over
    all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F. No reported loss contains it, and clipping,
    which comes earlier, does not see it. (Eq. 4 sums the squares of the norms. PEFT and the
    authors' code, which found the published weights, take the mean of the plain norms. So does
    this: orth_reg_weight means here what it means there.) Then `before_step` updates, for every
    weight w of a triplet, the smoothed sensitivity I = |w dL/dw| (Eq. 8, 9) and its uncertainty
    (Eq. 10).

    `after_step` keeps the b(t) most important triplets of all layers together (Eq. 7, 11), every
    ``deltaT`` steps after ``tinit``. It sets the singular values of the others to zero, from where
    they may come back. At ``total_steps - tfinal`` the others leave the parameters and the
    optimizer's state, and ``rank_pattern`` is updated. Training continues as it would with their
    singular values held at zero. Where they cannot leave (`in_place` is False, or the optimizer's
    state has another layout than the weights), they are held at zero, and `finish` removes them
    after the training.

    For a model without a trainable AdaLoRA adapter, every method does nothing.

    Args:
        model: What `attach` or `load` returned. Its config's ``total_step`` becomes `total_steps`.
        optimizer: The optimizer of the adapter's parameters.
        total_steps: Optimizer steps of the whole training.
        in_place: False where parameters must keep their shapes, as in DistributedDataParallel.

    Raises:
        ConfigError: ``tinit`` and ``tfinal`` leave no step for the budget to fall; PEFT itself has
            attached the adapter; or the parameters are shards.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, total_steps: int, *, in_place: bool = True
    ) -> None:
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.in_place = in_place
        self.history: list[tuple[int, Tensor]] = []
        """Steps, and how many triplets each layer kept after them, (layers,)."""
        self.kept: list[Tensor] | None = None
        """For each layer, which of its triplets stay, (r,); None where all take part."""
        self.is_final = True
        self._sensitivity: list[Tensor] = []
        self._uncertainty: list[Tensor] = []
        self._adapter, self.layers = _find_trainable_layers(model)
        if self.layers:
            self._start(model)

    def _start(self, model: nn.Module) -> None:
        """Check the schedule, and start the importance at zero."""
        self.config = next(iter(self.layers.values())).config[self._adapter]
        self._check_whole()
        self.initial = self._total_rank()
        self.target = self.config.target_r * len(self.layers)
        self.is_final = self.initial <= self.target
        if not self.is_final:
            self._check_schedule()
            for parameter in self.parameters():
                self._sensitivity.append(torch.zeros_like(parameter.detach()))
                self._uncertainty.append(torch.zeros_like(parameter.detach()))
        self.config.total_step = self.total_steps
        for module in model.modules():
            if isinstance(module, AdaLoraTuner):
                module.is_driven = True
        entry = {"initial": self.initial, "target": self.target, "total_steps": self.total_steps}
        for name in ("tinit", "tfinal", "deltaT", "orth_reg_weight"):
            entry[name] = getattr(self.config, name)
        note(model, "allocation", entry)

    def _check_schedule(self) -> None:
        tinit, tfinal = self.config.tinit, self.config.tfinal
        if tinit >= self.total_steps - tfinal:
            raise ConfigError(
                f"AdaLoRA's budget has no step to fall in: tinit is {tinit} and tfinal {tfinal}, "
                f"and the training has {self.total_steps} steps; make them smaller"
            )

    @torch.no_grad()
    def before_step(self, *, finite: bool = True) -> None:
        """Add the penalty's gradient and measure the sensitivity.

        Args:
            finite: False where a float16 step will be skipped.
        """
        if not finite:
            return
        for number, layer in enumerate(self.layers.values()):
            self._add_penalty(layer, None if self.kept is None else self.kept[number])
        if not self.is_final:
            self._measure()

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Allocate the budget of a step.

        Args:
            step: The number of steps done so far.

        Returns:
            Whether the budget has become final in this step.
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
            if self.in_place and self._state_matches_weights():
                self._prune()
        else:
            self.kept = None
        return self.is_final

    def finish(self) -> None:
        """Remove what was held at zero, after the training."""
        if self.is_final and self.kept is not None:
            self._prune()

    def budget(self, step: int) -> int:
        """Return the number of triplets that all layers keep together after `step` steps."""
        tinit, tfinal = self.config.tinit, self.config.tfinal
        return budget(step, self.initial, self.target, tinit, tfinal, self.total_steps)

    def rank_map(self) -> dict[int, dict[str, int]]:
        """Return how many triplets each layer kept, by step.

        The steps are some hundred of the fall, and its end.
        """
        ranks: dict[int, dict[str, int]] = {}
        for step, counts in self.history:
            ranks[step] = dict(zip(self.layers, counts.tolist(), strict=True))
        return ranks

    # What a log and a checkpoint contain

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
        """Return what a checkpoint needs beside weights and optimizer, for `load_state`.

        It is empty without AdaLoRA.
        """
        if not self.layers:
            return {}
        steps = [step for step, _ in self.history]
        counts = [each.cpu() for _, each in self.history]
        ranks = torch.zeros(0, len(self.layers), dtype=torch.int64)  # (steps, layers)
        if counts:
            ranks = torch.stack(counts)
        tensors = {
            "history.steps": torch.tensor(steps, dtype=torch.int64),
            "history.ranks": ranks,
        }
        # Both lists are empty once the budget is final.
        for name, value in zip(self._names(), self._sensitivity, strict=False):
            tensors[f"sensitivity.{name}"] = value
        for name, value in zip(self._names(), self._uncertainty, strict=False):
            tensors[f"uncertainty.{name}"] = value
        if self.is_final and self.kept is not None:
            for name, kept in zip(self.layers, self.kept, strict=True):
                tensors[f"kept.{name}"] = kept
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned; the weights have been loaded before.

        Raises:
            CheckpointError: it is the state of another adapter.
        """
        if not self.layers:
            return
        device = self.parameters()[0].device
        kept = []
        for name in self.layers:
            if f"kept.{name}" in tensors:
                kept.append(tensors[f"kept.{name}"].to(device))
        self.is_final = self._total_rank() <= self.target or bool(kept)
        self.kept = kept or None
        self._sensitivity = self._load_importance("sensitivity", tensors)
        self._uncertainty = self._load_importance("uncertainty", tensors)
        steps = tensors["history.steps"].tolist()
        self.history = list(zip(steps, tensors["history.ranks"].unbind(), strict=True))

    def _load_importance(self, part: str, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return one of the two parts of the importance from a checkpoint; a final one has none."""
        values: list[Tensor] = []
        if self.is_final:
            return values
        for name, parameter in zip(self._names(), self.parameters(), strict=True):
            value = tensors.get(f"{part}.{name}")
            if value is None or value.shape != parameter.shape:
                raise CheckpointError(
                    "the checkpoint's AdaLoRA importance is not that of this model's adapter"
                )
            values.append(value.to(parameter.device))
        return values

    # The parts of a step

    def _add_penalty(self, layer: AdaLoraLinear, kept: Tensor | None) -> None:
        """Add the penalty's gradient for one layer's Q, lora_A, and P, lora_B."""
        weight = self.config.orth_reg_weight / (2 * len(self.layers))
        for key in ("lora_A", "lora_B"):
            matrix = getattr(layer, key)[self._adapter]
            if not matrix.numel():
                matrix.grad = None  # some kernels do not take empty tensors
                continue
            if not weight or not matrix.requires_grad:
                continue
            rows = matrix if key == "lora_A" else matrix.T  # Q (r, in) or P^T (r, out)
            gradient = penalty_gradient(rows, weight, kept)
            if key == "lora_B":
                gradient = gradient.T
            if matrix.grad is None:
                matrix.grad = gradient.contiguous()
            else:
                matrix.grad.add_(gradient)

    def _measure(self) -> None:
        """Update the smoothed sensitivity and its uncertainty."""
        parameters = self.parameters()
        weights, gradients = [], []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:  # the step has not used this layer
                gradient = torch.zeros_like(parameter)
            weights.append(parameter.detach())
            gradients.append(gradient)
        beta1, beta2 = self.config.beta1, self.config.beta2
        # I = |w dL/dw|; mean I <- beta1 mean I + (1 - beta1) I
        sensitivity = torch._foreach_mul(weights, gradients)
        torch._foreach_abs_(sensitivity)
        torch._foreach_lerp_(self._sensitivity, sensitivity, 1 - beta1)
        # U <- beta2 U + (1 - beta2) |I - mean I|
        torch._foreach_sub_(sensitivity, self._sensitivity)
        torch._foreach_abs_(sensitivity)
        torch._foreach_lerp_(self._uncertainty, sensitivity, 1 - beta2)

    def importance(self) -> list[Tensor]:
        """Return, for each layer, the importance of its triplets, (r,).

        S = s(Lambda) + mean s(P) + mean s(Q), with s = mean I x U (Eq. 7, 11).
        """
        scores = torch._foreach_mul(self._sensitivity, self._uncertainty)
        importance = []
        # In the order of `parameters`: s(Q) (r, in), s(Lambda) (r, 1), s(P) (out, r).
        for q, values, p in zip(scores[0::3], scores[1::3], scores[2::3], strict=True):
            importance.append(q.mean(1) + values.flatten() + p.mean(0))
        return importance

    def _keep_best(self, count: int) -> None:
        """Choose the `count` most important triplets of all layers together; ties add none."""
        scores = self.importance()
        together = torch.cat([score.to(scores[0].device) for score in scores])  # (sum of r,)
        kept = torch.zeros_like(together, dtype=torch.bool)
        kept[together.topk(count).indices] = True
        parts = torch.split(kept, [len(score) for score in scores])
        self.kept = []
        for part, score in zip(parts, scores, strict=True):
            self.kept.append(part.to(score.device))

    def _counts(self) -> Tensor:
        """Return how many triplets each layer keeps, (layers,)."""
        if not self.kept:
            return torch.zeros(0)
        device = self.kept[0].device
        return torch.stack([kept.sum().to(device) for kept in self.kept])

    def _mask(self) -> None:
        """Set the singular values of the triplets that are not kept to zero."""
        for layer, kept in zip(self.layers.values(), self.kept or (), strict=False):
            layer.lora_E[self._adapter].masked_fill_(~kept.unsqueeze(1), 0.0)  # (r, 1)

    def _prune(self) -> None:
        """Remove the triplets that are not kept from parameters, optimizer state and config."""
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

    # The parameters

    def parameters(self) -> list[nn.Parameter]:
        """Return Q, Lambda and P (lora_A, lora_E, lora_B) of each layer in turn."""
        found = []
        for layer in self.layers.values():
            for key in TRIPLET_DIMENSION:
                found.append(getattr(layer, key)[self._adapter])
        return found

    def _names(self) -> list[str]:
        """Return the names of the parameters in a checkpoint, in the same order."""
        names: list[str] = []
        for name in self.layers:
            names.extend(f"{name}.{key}" for key in TRIPLET_DIMENSION)
        return names

    def _total_rank(self) -> int:
        return sum(layer.r[self._adapter] for layer in self.layers.values())

    def _state_matches_weights(self) -> bool:
        """Whether the optimizer's state has the weights' layout, so it can be pruned with them."""
        for parameter in self.parameters():
            for value in self.optimizer.state.get(parameter, {}).values():
                if not isinstance(value, Tensor) or value.numel() <= 1:
                    continue  # a step count, not one value for each weight
                if value.shape != parameter.shape or not value.is_floating_point():
                    return False
        return True

    def _check_whole(self) -> None:
        for parameter in self.parameters():
            if type(parameter) is not nn.Parameter or hasattr(parameter, "ds_id"):
                raise ConfigError(
                    "AdaLoRA ranks whole triplets and cannot see them in sharded parameters "
                    "(FSDP2, DeepSpeed ZeRO-3); train it on one process, or with "
                    "DistributedDataParallel"
                )


def _find_trainable_layers(model: nn.Module) -> tuple[str, dict[str, AdaLoraLinear]]:
    """Return the adapter that is trained, "" where there is none, and its layers by name."""
    adapter = ""
    layers: dict[str, AdaLoraLinear] = {}
    for module in model.modules():
        if not isinstance(module, AdaLoraLayer):
            continue
        values = module.get_submodule("lora_E").named_parameters()
        trained = [name for name, parameter in values if parameter.requires_grad]
        if not trained:
            continue
        if not isinstance(module, AdaLoraLinear):
            raise ConfigError(
                "PEFT itself has attached this AdaLoRA adapter, and its layers add the penalty to "
                "the loss; attach it with peftkit.attach, or load it with peftkit.load"
            )
        adapter = trained[0]
        layers[module.name] = module
    return adapter, layers
