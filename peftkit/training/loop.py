"""The training loop: any model with trained parameters, on any number of processes, through
Accelerate's public API.
"""

import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from peftkit.backbones.quantization import model_quantization
from peftkit.config.train import TrainSettings
from peftkit.errors import CheckpointError, ConfigError, NonFiniteError
from peftkit.losses.base import Batch, CausalLMLoss, Loss, on_device
from peftkit.methods.adalora.allocation import Allocation
from peftkit.random_state import random_state, set_random_state
from peftkit.training import fsdp, model_checks
from peftkit.training.checkpoint import Checkpoints, Trained, data_digest
from peftkit.training.evaluation import evaluate
from peftkit.training.gradient_checkpointing import checkpoint_blocks
from peftkit.training.interruption import Interruption
from peftkit.training.metrics_log import MetricsLog
from peftkit.training.optimizer import make_optimizer, make_scheduler
from peftkit.training.order import Order
from peftkit.training.out_of_memory import explained, until_it_fits
from peftkit.training.passes import Passes
from peftkit.training.progress import Outcome, Progress
from peftkit.training.progress_line import ProgressLine, memory_bytes

_SKIPPED_STEPS_LIMIT = (
    20  # float16 scales its loss down after an overflow; so many in a row are not an overflow
)


@dataclasses.dataclass
class Hooks:
    """Where a method or a task joins the loop.

    `after_step(step, total_steps)` runs after the optimiser's step, while the gradients are still
    there. `evaluate()` runs on every process and returns further metrics for each evaluation; those
    of the first process count.
    """

    after_step: Callable[[int, int], None] | None = None
    evaluate: Callable[[], dict[str, float]] | None = None


@dataclasses.dataclass
class Training:
    """One training of the parameters of `model` that require a gradient.

    Each step minimises the mean loss over all supervised items of all its micro-batches on all
    processes, so how a batch is cut does not matter. A loss or gradient that is not finite ends the
    run before it reaches a weight.

    Args:
        model: A model from `attach`, or any module; it is trained in place.
        examples: The training examples; ``len`` of one is its length in tokens, its ``repr`` tells
            it from others.
        collate: Makes a batch of tensors from a list of examples.
        settings: How to train.
        run_dir: Takes ``metrics.jsonl`` and ``checkpoints/``.
        accelerator: From `make_accelerator`, or one's own.
        evaluation: Held-out examples.
        loss: The loss.
        hooks: Where a method or a task joins.
        seed: Seed of the order of the examples.

    Raises:
        ConfigError: nothing can be trained, an evaluation is asked for without examples, or the
            processes cannot do what the settings want (`peftkit.training.model_checks`).
    """

    model: nn.Module
    examples: Sequence[Sized]
    collate: Callable[[Sequence[Any]], Batch]
    settings: TrainSettings
    run_dir: Path
    accelerator: Accelerator
    evaluation: Sequence[Sized] = ()
    loss: Loss = dataclasses.field(default_factory=CausalLMLoss)
    hooks: Hooks = dataclasses.field(default_factory=Hooks)
    seed: int = 0

    def __post_init__(self) -> None:
        model, settings, accelerator = self.model, self.settings, self.accelerator
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                "the model has no parameter that requires a gradient; peftkit.attach gives it some"
            )
        if not self.examples:
            raise ConfigError("there are no examples to train on")
        if settings.evaluate_every is not None and not self.evaluation:
            raise ConfigError("train.evaluate_every needs held-out rows: set data.evaluation")
        model_checks.check_processes(settings, model, accelerator)
        lengths = list(map(len, self.examples))
        cut = (settings.batch_size, settings.accumulate, accelerator.num_processes)
        self.order = Order(lengths, *cut, self.seed, settings.group_by_length)
        wanted = max(1, round(settings.epochs * self.order.steps_per_epoch))
        self.total_steps = min(wanted, settings.max_steps or wanted)
        self.evaluation_interval = _steps_between(
            settings.evaluate_every, self.order.steps_per_epoch
        )
        self.save_interval = _steps_between(settings.save_every, self.order.steps_per_epoch)
        self.explained = functools.partial(
            explained, train=settings, quantization=model_quantization(model), longest=max(lengths)
        )
        decided = checkpoint_blocks(model.to(accelerator.device), settings, self._largest_loss)
        shards, optimizer = self._prepare()
        scheduler = make_scheduler(optimizer, settings, self.total_steps)
        self.allocation = Allocation(
            model, optimizer, self.total_steps, in_place=accelerator.num_processes == 1
        )
        self.passes = Passes(
            self.prepared,
            self.loss,
            self.examples,
            self.collate,
            self.order,
            accelerator,
            self.explained,
        )
        self.trained = Trained(model, optimizer, scheduler, self.allocation, shards)
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints", accelerator)
        self.log = MetricsLog(self.run_dir / "metrics.jsonl", accelerator)
        self.line = ProgressLine(
            self.total_steps,
            accelerator.is_main_process,
            getattr(self.loss, "unit", "examples"),
        )
        if decided is not None:
            self.line.message(decided)
        self.data_digest = data_digest(self.examples)
        self.progress = Progress()
        self.skipped = 0

    def _largest_loss(self) -> Tensor:
        """Take the longest examples that one pass may get through the model."""
        by_length = sorted(self.examples, key=len, reverse=True)
        batch = on_device(
            self.accelerator.device, self.collate(by_length[: self.settings.batch_size])
        )
        with self.explained("forward"), self.accelerator.autocast():
            return self.loss.sum(self.model.train(), batch)

    def _prepare(self) -> tuple[fsdp.Shards | None, torch.optim.Optimizer]:
        """Make model and optimiser ready for the processes that there are."""
        accelerator, self.prepared = self.accelerator, self.model
        if fsdp.is_in_use():
            shards = fsdp.Shards(self.model, accelerator)
            optimizer = make_optimizer(self.model, self.settings)
            self.optimizer = accelerator.prepare_optimizer(optimizer)
            return shards, optimizer
        optimizer = make_optimizer(self.model, self.settings)
        self.prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        # The loop does its own autocast; Accelerate's, on the model's forward, would cast all
        # logits to float32.
        accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        return None, optimizer

    def run(self) -> Outcome:
        """Train to the end, going on from the newest checkpoint in `run_dir` if there is one; or
        until a signal comes.

        Raises:
            CheckpointError: the checkpoint to go on from is damaged or belongs to another run.
            ConfigError: the evaluation does not give the metric ``train.best``.
            NonFiniteError: a loss or gradient is not finite.
            OutOfMemoryError: a step or an evaluation does not fit in memory.
        """
        self._resume()
        self.log.start(self.progress.step)
        progress, received = self.progress, None
        with (
            Interruption() as interruption,
            disable_input_dtype_casting(self.model, active=self._casts_are_idle()),
        ):
            self.model.train()
            while (
                progress.step < self.total_steps
                and received is None
                and not self._is_stopped_early()
            ):
                started = time.monotonic()
                entry, received = self._step(interruption)
                progress.seconds += time.monotonic() - started
                self.log.write(progress.step, "train", entry | self._cost())
                self.log.write_ranks(progress.step, self.allocation)
                self.line.show(progress.step, entry, progress.seconds)
                self._evaluate_and_save(stopping=received is not None)
        self.line.close()
        if self.trained.shards is not None:
            self.trained.shards.dissolve()
        if (
            received is None
            and self.settings.restore_best
            and progress.best_step not in (None, progress.step)
        ):
            self.checkpoints.restore_weights(self.checkpoints.path(progress.best_step), self.model)
        self.allocation.finish()
        last = self.checkpoints.path(progress.step)
        return Outcome(
            progress.step, self.total_steps, progress.best_step, progress.best_value, received, last
        )

    def _cost(self) -> dict[str, float]:
        """Return the seconds of all steps so far, and the peak of the memory in GiB."""
        return {"seconds": self.progress.seconds, "memory_gib": memory_bytes()[1] / 2**30}

    def _casts_are_idle(self) -> bool:
        """Tell whether autocast takes back at once what PEFT casts to float32 before an update:
        without the casts, the same numbers and fewer copies. DoRA and other variants compute with
        the cast input before autocast sees it.
        """
        has_variant = any(getattr(module, "lora_variant", None) for module in self.model.modules())
        return self.accelerator.mixed_precision != "no" and not has_variant

    def _step(self, interruption: Interruption) -> tuple[dict[str, float], int | None]:
        """Make one optimiser step; return what to log, and a signal if any process has received
        one.
        """
        progress, accelerator = self.progress, self.accelerator
        items, loss = self._gradients()
        asked_to_stop = torch.tensor(
            float(interruption.received is not None), device=accelerator.device
        )
        total, stop = accelerator.reduce(torch.stack([loss, asked_to_stop])).tolist()
        mean_loss = total / items
        clipped = accelerator.clip_grad_norm_(
            self.model.parameters(), self.settings.clip_norm or math.inf
        )
        norm = float(fsdp.whole(clipped))
        self._check_finite(mean_loss, norm)
        rate = self.trained.scheduler.get_last_lr()[0]
        with self.explained("step"):
            self.allocation.before_step(finite=math.isfinite(norm))
            self.optimizer.step()
            self.allocation.after_step(progress.step + 1)
        if self.hooks.after_step is not None:
            self.hooks.after_step(progress.step, self.total_steps)
        self.optimizer.zero_grad()
        self.trained.scheduler.step()
        progress.step += 1
        progress.tokens += round(items)
        entry = {"loss": mean_loss, "gradient_norm": norm, "learning_rate": rate, "items": items}
        return entry, (interruption.received or signal.SIGTERM) if stop else None

    def _gradients(self) -> tuple[float, Tensor]:
        """Do the passes of a step, with ``auto_batch`` in as many as it takes: see
        `Passes.accumulate`.
        """
        settings, progress = self.settings, self.progress
        start = random_state() if settings.auto_batch else None

        def attempt(size: int) -> tuple[float, Tensor]:
            self.order.batch_size = size
            if start is not None:
                set_random_state(*start)
                self.optimizer.zero_grad()
            return self.passes.accumulate(progress.step)

        def tell(size: int) -> None:
            progress.batch_size, number = (
                size,
                math.ceil(settings.batch_size * settings.accumulate / size),
            )
            self.log.write(
                progress.step + 1, "auto_batch", {"batch_size": size, "accumulate": number}
            )
            self.line.message(
                f"out of memory: from step {progress.step + 1} on, {number} passes of {size} make one step"
            )

        size = progress.batch_size or settings.batch_size
        return until_it_fits(attempt, size, may_halve=settings.auto_batch, tell=tell)

    def _check_finite(self, loss: float, norm: float) -> None:
        scaling = self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled()
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if math.isfinite(loss) and (
            math.isfinite(norm) or (scaling and self.skipped < _SKIPPED_STEPS_LIMIT)
        ):
            return
        what = (
            f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        )
        raise NonFiniteError(
            f"{what} at step {self.progress.step + 1}; no weight was changed by it and the last checkpoint stands. "
            "Try a lower train.learning_rate, or train.precision=no"
        )

    def _evaluate_and_save(self, stopping: bool) -> None:
        """Evaluate and save where the settings say so, at the end, and before stopping."""
        progress = self.progress
        at_end = progress.step == self.total_steps
        due = self.evaluation_interval is not None and (
            at_end or progress.step % self.evaluation_interval == 0
        )
        if due:
            metrics = self._evaluated()
            self.log.write(progress.step, "evaluation", metrics)
            self.line.message(
                f"evaluation at step {progress.step}: "
                + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            )
            # Before the budget is final, the model is larger than it may end, and no such one is
            # the best.
            progress.evaluated(metrics, self.settings.best, counts=self.allocation.is_final)
        save_due = self.save_interval is not None and progress.step % self.save_interval == 0
        if due or save_due or at_end or stopping:
            self.checkpoints.save(
                progress.step, self.trained, dataclasses.asdict(progress), self.data_digest
            )
            self.checkpoints.keep({progress.step, progress.best_step or progress.step})

    def _evaluated(self) -> dict[str, float]:
        settings, progress = self.settings, self.progress

        def attempt(size: int) -> dict[str, float]:
            with self.explained("evaluation"):
                given = (self.model, self.evaluation, self.collate, self.accelerator)
                return evaluate(*given, batch_size=size, loss=self.loss)

        def tell(size: int) -> None:
            progress.evaluation_batch_size = size
            self.line.message(f"out of memory: evaluations go on with batches of {size}")

        size = (
            progress.evaluation_batch_size or settings.evaluation_batch_size or settings.batch_size
        )
        with self.trained.gathered():
            metrics = until_it_fits(attempt, size, may_halve=settings.auto_batch, tell=tell)
            with self.explained("evaluation"):
                metrics |= self.hooks.evaluate() if self.hooks.evaluate is not None else {}
        return dict(
            broadcast_object_list([metrics])[0]
        )  # all processes stop, or go on, by the same numbers

    def _is_stopped_early(self) -> bool:
        patience = self.settings.early_stopping
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _resume(self) -> None:
        """Go on from a checkpoint, where the settings want it and there is one."""
        wanted = self.settings.resume
        path = (
            self.checkpoints.latest()
            if wanted == "auto"
            else None
            if wanted == "never"
            else Path(wanted)
        )
        if path is not None:
            if not path.is_dir():
                raise CheckpointError(
                    f"train.resume is {wanted!r}: there is no checkpoint directory of that name"
                )
            self.progress = Progress(
                **self.checkpoints.restore(path, self.trained, self.data_digest)
            )
            if (
                path.parent.resolve() != self.checkpoints.directory.resolve()
            ):  # another run's: its best is not here
                self.progress.forget_best()
            self.line.message(f"resumed at step {self.progress.step} from {path}")


def _steps_between(every: float | None, steps_per_epoch: int) -> int | None:
    """Return an interval in steps: up to 1, `every` is a share of an epoch; above, it is steps."""
    if every is None:
        return None
    return max(1, round(every * steps_per_epoch) if every <= 1 else round(every))
