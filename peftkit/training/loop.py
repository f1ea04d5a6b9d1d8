"""The training loop: any model with trained parameters, on any number of processes."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peftkit.backbones.quantization import model_quantization
from peftkit.config.train import TrainSettings
from peftkit.data.examples import data_digest, lengths_of
from peftkit.errors import CheckpointError, ConfigError, NonFiniteError
from peftkit.losses.base import Batch, CausalLMLoss, Loss, on_device
from peftkit.random_state import random_state, set_random_state
from peftkit.training import fsdp
from peftkit.training.callbacks import Callback
from peftkit.training.checkpoint import Checkpoints
from peftkit.training.early_stopping import Outcome
from peftkit.training.evaluation import evaluate
from peftkit.training.gradient_checkpointing import checkpoint_blocks
from peftkit.training.interruption import Interruption
from peftkit.training.metrics_log import MetricsLog
from peftkit.training.model_checks import check_processes
from peftkit.training.optimizer import make_optimizer, make_scheduler
from peftkit.training.order import ExampleOrder, Order
from peftkit.training.out_of_memory import Place, explained, until_it_fits
from peftkit.training.passes import Passes
from peftkit.training.preparation import prepare
from peftkit.training.progress_line import ProgressLine, memory_bytes

# Float16 scales its loss down after an overflow; so many skipped steps in a row are no overflow.
_SKIPPED_STEPS_LIMIT = 20


@dataclasses.dataclass
class Training:
    """One training of the parameters of `model` that require a gradient.

    Each step minimises the mean loss over all supervised items of all its micro-batches on all
    processes, so how a batch is cut does not matter. A loss or gradient that is not finite ends the
    run before it reaches a weight.

    A resumed run is exact with an optimizer, scheduler and callbacks of yours too, if you give the
    same ones again: their state is in the checkpoint.

    Args:
        model: A model from `attach`, or any module; it is trained in place.
        examples: The training examples; ``len`` of one is its length in tokens, and its ``repr``
            shows all that is learned from it.
        collate: Makes a batch of tensors from a list of examples.
        settings: How to train.
        run_dir: Takes ``metrics.jsonl`` and ``checkpoints/``.
        accelerator: From `make_accelerator`, or your own.
        evaluation: Held-out examples.
        loss: The loss.
        optimizer: Makes an optimizer for the model, once that is on its device. None is AdamW as
            the settings say; else their ``learning_rate``, ``weight_decay`` and betas do not count.
        scheduler: Makes a schedule from the optimizer and the number of steps; its ``step`` is
            called once per optimizer step. None is the schedule that the settings name.
        order: The examples of each epoch, in order (`peftkit.training.order`). None is a new random
            order in each.
        callbacks: What else is done at the events of the training.
        seed: Seed of the random order.
        share: The share of the training data that `examples` are; an interval that is a part of an
            epoch is that part of all of it.
    """

    model: nn.Module
    examples: Sequence[Sized]
    collate: Callable[[Sequence[Any]], Batch]
    settings: TrainSettings
    run_dir: Path
    accelerator: Accelerator
    evaluation: Sequence[Sized] = ()
    loss: Loss = dataclasses.field(default_factory=CausalLMLoss)
    optimizer: Callable[[nn.Module], Optimizer] | None = None
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    order: ExampleOrder | None = None
    callbacks: Sequence[Callback] = ()
    seed: int = 0
    share: float = 1.0

    def run(self) -> Outcome:
        """Train to the end or to a signal, from the newest checkpoint in `run_dir` if there is one.

        Raises:
            CheckpointError: the checkpoint to resume from is damaged or belongs to another run.
            ConfigError: nothing can be trained; the settings ask for what the data, the processes
                or the evaluation do not have.
            NonFiniteError: a loss or gradient is not finite.
            OutOfMemoryError: a step or an evaluation does not fit in memory.
        """
        self._check()
        self._plan_steps()
        self._prepare()
        self._resume()
        self._log.start(self._state.step)
        with (
            Interruption() as interruption,
            disable_input_dtype_casting(self.model, active=self._casts_are_idle()),
        ):
            received = self._train(interruption)
        self._line.close()
        return self._finish(received)

    # Preparation

    def _check(self) -> None:
        """Refuse what cannot be trained."""
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ConfigError(
                "the model has no parameter that requires a gradient; peftkit.attach gives it some"
            )
        if not self.examples:
            raise ConfigError("there are no examples to train on")
        if self.settings.evaluate_every is not None and not self.evaluation:
            raise ConfigError("train.evaluate_every needs held-out rows: set data.evaluation")
        if self.settings.curriculum is not None and self.order is not None:
            raise ConfigError("train.curriculum is an order of its own: leave it or `order` out")
        check_processes(self.settings, self.model, self.accelerator)

    def _plan_steps(self) -> None:
        """Cut the examples into steps, and say when to evaluate and to save."""
        settings = self.settings
        lengths = lengths_of(self.examples)
        self._longest = int(lengths.max())
        if settings.curriculum is not None and not self._longest:
            raise ConfigError(
                "train.curriculum goes by tokens, and these examples have none: leave it out"
            )
        self._order = Order(
            lengths,
            settings.batch_size,
            settings.accumulate,
            self.accelerator.num_processes,
            self.seed,
            settings.group_by_length,
            self.order,
            shortest_first=settings.curriculum is not None,
        )
        per_epoch = self._order.steps_per_epoch
        self._total_steps = settings.max_steps or max(1, round(settings.epochs * per_epoch))
        whole = per_epoch / self.share
        self._evaluation_interval = _interval(settings.evaluate_every, whole)
        self._save_interval = _interval(settings.save_every, whole)

    def _prepare(self) -> None:
        """Put the model on its device and processes, and make what trains it."""
        accelerator = self.accelerator
        self._log = MetricsLog(self.run_dir / "metrics.jsonl", accelerator)
        unit = getattr(self.loss, "unit", "examples")
        self._line = ProgressLine(self._total_steps, accelerator.is_main_process, unit)
        self._quantization = model_quantization(self.model)
        self.model.to(accelerator.device)
        decided = checkpoint_blocks(self.model, self.settings, self._largest_loss)
        if decided is not None:
            self._line.message(decided)
        prepared = prepare(
            self.model, accelerator, self._total_steps, self._optimizer_for, self._scheduler_for
        )
        self._state = prepared.state
        self._prepared_optimizer = prepared.optimizer
        self._passes = Passes(
            prepared.model,
            self.loss,
            self.examples,
            self.collate,
            self._order,
            accelerator,
            self._explained,
        )
        checkpoints = self.run_dir / "checkpoints"
        self._checkpoints = Checkpoints(checkpoints, accelerator, self.callbacks)
        self._data_digest = data_digest(self.examples)
        self._skipped_steps = 0

    def _optimizer_for(self, model: nn.Module) -> Optimizer:
        if self.optimizer is not None:
            return self.optimizer(model)
        return make_optimizer(model, self.settings)

    def _scheduler_for(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        if self.scheduler is not None:
            return self.scheduler(optimizer, total_steps)
        return make_scheduler(optimizer, self.settings, total_steps)

    def _largest_loss(self) -> Tensor:
        """Take the longest examples that one pass may get through the model."""
        by_length = np.argsort(-lengths_of(self.examples), kind="stable")
        longest = by_length[: self.settings.batch_size].tolist()
        largest = self.collate([self.examples[number] for number in longest])
        batch = on_device(self.accelerator.device, largest)
        with self._explained("forward"), self.accelerator.autocast():
            return self.loss.sum(self.model.train(), batch)

    def _resume(self) -> None:
        """Load a checkpoint, where the settings want it and there is one."""
        wanted = self.settings.resume
        if wanted == "never":
            return
        path = self._checkpoints.latest() if wanted == "auto" else Path(wanted)
        if path is None:
            return
        if not path.is_dir():
            raise CheckpointError(
                f"train.resume is {wanted!r}: there is no checkpoint directory of that name"
            )
        self._checkpoints.restore(path, self._state, self._data_digest)
        if path.parent.resolve() != self._checkpoints.directory.resolve():
            self._state.progress.forget_best()  # another run's best is not in this directory
        self._line.message(f"resumed at step {self._state.step} from {path}")

    # Steps

    def _train(self, interruption: Interruption) -> int | None:
        """Take steps until the last, a signal or early stopping; return the signal if one came."""
        state, received = self._state, None
        self.model.train()
        for callback in self.callbacks:
            callback.on_train_start(state)
        while (
            state.step < self._total_steps
            and received is None
            and not state.progress.is_out_of_patience(self.settings.early_stopping)
        ):
            started = time.monotonic()
            metrics, received = self._step(interruption)
            state.progress.seconds += time.monotonic() - started
            for callback in self.callbacks:
                callback.on_step_end(state, metrics)
            cost = {"seconds": state.progress.seconds, "memory_gib": memory_bytes()[1] / 2**30}
            self._log.write(state.step, "train", metrics | cost)
            self._log.write_of_method(state.step, state.method)
            self._line.show(state.step, metrics, state.progress.seconds)
            self._evaluate_and_save(is_stopping=received is not None)
        return received

    def _casts_are_idle(self) -> bool:
        """Whether autocast takes back at once what PEFT casts to float32 before an update.

        Without the casts, the numbers are the same and there are fewer copies. DoRA and other
        variants compute with the cast input before autocast sees it.
        """
        has_variant = any(getattr(module, "lora_variant", None) for module in self.model.modules())
        return self.accelerator.mixed_precision != "no" and not has_variant

    def _step(self, interruption: Interruption) -> tuple[dict[str, float], int | None]:
        """Take one optimizer step.

        Returns:
            The step's metrics, and a signal if any process has received one.
        """
        state, accelerator = self._state, self.accelerator
        items, summed = self._accumulate_gradients()
        # One reduction for both: the loss over all processes, and how many were asked to stop.
        has_signal = torch.tensor(
            float(interruption.received is not None), device=accelerator.device
        )
        total, stopping = accelerator.reduce(torch.stack([summed, has_signal])).tolist()
        mean_loss = total / items
        clip_norm = self.settings.clip_norm or math.inf
        norm = float(fsdp.whole(accelerator.clip_grad_norm_(self.model.parameters(), clip_norm)))
        self._check_finite(mean_loss, norm)
        metrics = {
            "loss": mean_loss,
            "gradient_norm": norm,
            "learning_rate": state.scheduler.get_last_lr()[0],
            "items": items,
        }
        self._update(is_finite=math.isfinite(norm))
        state.progress.tokens += round(items)
        received = (interruption.received or signal.SIGTERM) if stopping else None
        return metrics, received

    def _update(self, *, is_finite: bool) -> None:
        """Let the gradients change the parameters, with all that happens before and after."""
        state = self._state
        for callback in self.callbacks:
            callback.before_optimizer_step(state)
        with self._explained("step"):
            state.method.before_step(finite=is_finite)
            self._prepared_optimizer.step()
            state.method.after_step(state.step + 1)
        state.progress.step += 1
        for callback in self.callbacks:
            callback.after_optimizer_step(state)
        self._prepared_optimizer.zero_grad()
        state.scheduler.step()

    def _accumulate_gradients(self) -> tuple[float, Tensor]:
        """Do the passes of a step (`Passes.accumulate`), with ``auto_batch`` in smaller ones."""
        settings, state = self.settings, self._state
        start = random_state() if settings.auto_batch else None

        def attempt(size: int) -> tuple[float, Tensor]:
            self._order.batch_size = size
            if start is not None:  # each attempt draws the same dropout
                set_random_state(start)
                self._prepared_optimizer.zero_grad()
            return self._passes.accumulate(state.step)

        size = state.progress.batch_size or settings.batch_size
        return until_it_fits(
            attempt, size, may_halve=settings.auto_batch, tell=self._use_smaller_passes
        )

    def _use_smaller_passes(self, size: int) -> None:
        step = self._state.step + 1
        passes = math.ceil(self.settings.batch_size * self.settings.accumulate / size)
        self._state.progress.batch_size = size
        self._log.write(step, "auto_batch", {"batch_size": size, "accumulate": passes})
        self._line.message(
            f"out of memory: from step {step} on, {passes} passes of {size} make one step"
        )

    def _check_finite(self, loss: float, norm: float) -> None:
        """Stop before a loss or gradient that is not finite reaches a weight."""
        scaler = self.accelerator.scaler
        is_scaling = scaler is not None and scaler.is_enabled()
        self._skipped_steps = 0 if math.isfinite(norm) else self._skipped_steps + 1
        is_skipped = is_scaling and self._skipped_steps < _SKIPPED_STEPS_LIMIT
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        elif not math.isfinite(norm) and not is_skipped:
            what = f"the gradient's norm is {norm}"
        else:
            return
        raise NonFiniteError(
            f"{what} at step {self._state.step + 1}; no weight was changed by it and the last "
            "checkpoint stands. Try a lower train.learning_rate, or train.precision=no"
        )

    # Evaluation and checkpoints

    def _evaluate_and_save(self, *, is_stopping: bool) -> None:
        """Evaluate and save where the settings say so, at the end, and before stopping."""
        state = self._state
        is_last = state.step == self._total_steps
        is_evaluated = self._evaluation_interval is not None and (
            is_last or state.step % self._evaluation_interval == 0
        )
        if is_evaluated:
            self._evaluate()
        is_due = self._save_interval is not None and state.step % self._save_interval == 0
        if is_due or is_evaluated or is_last or is_stopping:
            path = self._checkpoints.save(state, self._data_digest)
            self._checkpoints.keep({state.step, state.progress.best_step or state.step})
            for callback in self.callbacks:
                callback.on_checkpoint(state, path)

    def _evaluate(self) -> None:
        """Evaluate on the held-out examples, and take note of the result."""
        state = self._state
        with state.gathered():
            measured = self._held_out_metrics()
        # All processes stop, or go on, by the numbers of the first one.
        metrics = dict(broadcast_object_list([measured])[0])
        self._log.write(state.step, "evaluation", metrics)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._line.message(f"evaluation at step {state.step}: {shown}")
        # A model that may still shrink is larger than the one to end with, so it is no best one.
        state.progress.evaluated(metrics, self.settings.best, counts=state.method.is_final)
        for callback in self.callbacks:
            callback.on_evaluation(state, metrics)

    def _held_out_metrics(self) -> dict[str, float]:
        """Return the loss on the held-out examples, and what the callbacks measure."""
        settings, progress = self.settings, self._state.progress

        def attempt(size: int) -> dict[str, float]:
            with self._explained("evaluation"):
                return evaluate(
                    self.model,
                    self.evaluation,
                    self.collate,
                    self.accelerator,
                    batch_size=size,
                    loss=self.loss,
                )

        def use_smaller_batches(size: int) -> None:
            progress.evaluation_batch_size = size
            self._line.message(f"out of memory: evaluations go on with batches of {size}")

        size = (
            progress.evaluation_batch_size or settings.evaluation_batch_size or settings.batch_size
        )
        metrics = until_it_fits(
            attempt, size, may_halve=settings.auto_batch, tell=use_smaller_batches
        )
        with self._explained("evaluation"):
            for callback in self.callbacks:
                metrics |= callback.measure(self._state)
        return metrics

    # The end

    def _finish(self, received: int | None) -> Outcome:
        """Leave the model as the caller gets it: whole, and with the best weights if wanted."""
        state, progress = self._state, self._state.progress
        if state.shards is not None:
            state.shards.dissolve()
        if received is None and self.settings.restore_best:
            self._restore_best()
        state.method.finish()
        outcome = Outcome(
            progress.step,
            self._total_steps,
            progress.best_step,
            progress.best_value,
            received,
            self._checkpoints.path(progress.step),
        )
        for callback in self.callbacks:
            callback.on_train_end(state, outcome)
        return outcome

    def _restore_best(self) -> None:
        progress = self._state.progress
        if progress.best_step is not None and progress.best_step != progress.step:
            path = self._checkpoints.path(progress.best_step)
            self._checkpoints.restore_weights(path, self.model)

    def _explained(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a lack of memory is an error that says what to change."""
        return explained(
            place, self.settings, quantization=self._quantization, longest=self._longest
        )


def _interval(every: float | None, steps_per_epoch: float) -> int | None:
    """Return an interval in steps: up to 1, `every` is a share of an epoch; above, it is steps."""
    if every is None:
        return None
    return max(1, round(every * steps_per_epoch) if every <= 1 else round(every))
