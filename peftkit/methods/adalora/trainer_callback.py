"""AdaLoRA under transformers.Trainer."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.errors import CheckpointError, ConfigError
from peftkit.files import read_tensors, write_tensors
from peftkit.methods.adalora.budget import Allocation

_FILE = "adalora.safetensors"  # in each of Trainer's checkpoints


class AdaLoraCallback(TrainerCallback):
    """Trains AdaLoRA (arXiv:2303.10512) in ``transformers.Trainer``.

    Example: ``Trainer(model, ..., callbacks=[AdaLoraCallback()])``, with a model from
    `peftkit.attach` or `peftkit.load`.

    The budget falls over the Trainer's steps, whatever ``total_step`` says. The penalty enters the
    gradient after clipping, and no loss. Pruned triplets leave the parameters and the optimizer
    when the budget is final, or at the end of the training where there are several processes. Each
    checkpoint gets a file with the importance of the triplets, so ``resume_from_checkpoint``
    continues exactly. ``load_best_model_at_end`` chooses among the evaluations after the budget has
    become final.

    Args:
        resume_from_checkpoint: The directory given to ``train(resume_from_checkpoint=...)``, where
            it is not in the Trainer's own ``output_dir``.

    Raises:
        ConfigError: at the start of the training, for what
            `peftkit.methods.adalora.budget.Allocation` refuses, for a model without a trainable
            AdaLoRA adapter, and for fp16 without ``max_grad_norm``.
        CheckpointError: the checkpoint to resume from was written without this callback.
    """

    def __init__(self, resume_from_checkpoint: str | Path | None = None) -> None:
        self.allocation: Allocation | None = None
        self._resume_from = resume_from_checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Start with the Trainer's number of steps, or continue from a checkpoint."""
        if args.fp16 and not args.max_grad_norm:
            raise ConfigError(
                "AdaLoraCallback needs unscaled gradients: with fp16, set max_grad_norm, or use "
                "bf16"
            )
        alone = args.world_size == 1
        self.allocation = Allocation(
            objects["model"], objects["optimizer"], state.max_steps, in_place=alone
        )
        if not self.allocation.layers:
            raise ConfigError(
                "the model has no trainable AdaLoRA adapter for AdaLoraCallback; attach one with "
                "peftkit.attach"
            )
        if state.global_step:
            self.allocation.load_state(self._saved(args, state))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Add the penalty's gradient and measure the importance."""
        assert self.allocation is not None
        self.allocation.before_step(finite=not args.fp16 or self._gradients_are_finite())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Allocate this step's budget."""
        assert self.allocation is not None
        if self.allocation.after_step(state.global_step + 1):
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Write the importance into the checkpoint."""
        assert self.allocation is not None
        if state.is_world_process_zero:
            step = {"step": torch.tensor(state.global_step)}
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
            write_tensors(path, self.allocation.state() | step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        """Remove what several processes had to hold at zero."""
        assert self.allocation is not None
        self.allocation.finish()

    def _gradients_are_finite(self) -> bool:
        assert self.allocation is not None
        gradients = [p.grad for p in self.allocation.parameters() if p.grad is not None]
        if not gradients:
            return True
        return math.isfinite(float(torch.stack(torch._foreach_norm(gradients)).sum()))

    def _saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, torch.Tensor]:
        """Return the state in the checkpoint of `state.global_step`.

        The Trainer does not tell its callbacks where the checkpoint is.
        """
        own = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        directories = []
        for named in (self._resume_from, args.resume_from_checkpoint):
            if isinstance(named, str | Path):
                directories.append(Path(named))
        for directory in [*directories, own]:
            if not (directory / _FILE).is_file():
                continue
            tensors = read_tensors(directory / _FILE, CheckpointError)
            if int(tensors["step"]) == state.global_step:
                return tensors
        raise CheckpointError(
            f"there is no {_FILE} of step {state.global_step} in {own}; if the checkpoint is "
            "elsewhere, name it in AdaLoraCallback(resume_from_checkpoint=...)"
        )
