"""The training loop: any model with trained parameters, on any number of processes, through Accelerate's public API."""

import contextlib
import dataclasses
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import get_scheduler

from peftkit.errors import CheckpointError, ConfigError, NonFiniteError
from peftkit.methods.allocation import Allocation
from peftkit.training.checkpoint import Checkpoints, Trained
from peftkit.training.evaluation import evaluate
from peftkit.training.interruption import Interruption
from peftkit.training.metrics import MetricsLog, ProgressLine
from peftkit.training.objective import IGNORED, Batch, CausalLanguageModel, Objective, on_device
from peftkit.training.order import Order
from peftkit.training.settings import TrainSettings

_SKIPPED_STEPS_LIMIT = 20  # float16 scales its loss down after an overflow; so many in a row are not an overflow


class Example(Protocol):
    """What the loop asks of an example: its tokens, to know its length."""

    input_ids: list[int]


@dataclasses.dataclass
class Hooks:
    """Where a method or a task joins the loop.

    `after_step(step, total_steps)` runs after the optimiser's step, while the gradients are still there.
    `evaluate()` returns further metrics for each evaluation, on every process.
    """

    after_step: Callable[[int, int], None] | None = None
    evaluate: Callable[[], dict[str, float]] | None = None


@dataclasses.dataclass
class Outcome:
    """How a run ended: at which step of how many, where its best evaluation was, and the signal that stopped it, if one did."""

    step: int
    total_steps: int
    best_step: int | None
    best_loss: float | None
    interrupted: int | None
    checkpoint: Path


@dataclasses.dataclass
class _Progress:
    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_since_best: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def evaluated(self, loss: float) -> None:
        self.evaluations_since_best += 1
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.evaluations_since_best = loss, self.step, 0


def accelerator_for(settings: TrainSettings, model: nn.Module, run_dir: Path) -> Accelerator:
    """Return an Accelerator with the precision that suits the model, and the trackers that the settings name."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    auto = "bf16" if torch.bfloat16 in dtypes else "fp16" if torch.float16 in dtypes else "no"
    precision = auto if settings.precision == "auto" else settings.precision
    return Accelerator(mixed_precision=precision, log_with=list(settings.trackers) or None, project_dir=run_dir)


@dataclasses.dataclass
class Training:
    """One training of the parameters of `model` that require a gradient.

    Each step minimises the mean loss over all supervised items of all its micro-batches on all processes, so how a batch
    is cut does not matter. A loss or gradient that is not finite ends the run before it reaches a weight.

    Args:
        model: A model from `attach`, or any module; it is trained in place.
        examples: The training examples; each has ``input_ids``.
        collate: Makes a batch of tensors from a list of examples.
        settings: How to train.
        run_dir: Takes ``metrics.jsonl`` and ``checkpoints/``.
        accelerator: From `accelerator_for`, or one's own.
        evaluation: Held-out examples.
        objective: The loss.
        hooks: Where a method or a task joins.
        seed: Seed of the order of the examples.

    Raises:
        ConfigError: nothing can be trained, or an evaluation is asked for without examples.
    """

    model: nn.Module
    examples: Sequence[Any]
    collate: Callable[[Sequence[Any]], Batch]
    settings: TrainSettings
    run_dir: Path
    accelerator: Accelerator
    evaluation: Sequence[Any] = ()
    objective: Objective = dataclasses.field(default_factory=CausalLanguageModel)
    hooks: Hooks = dataclasses.field(default_factory=Hooks)
    seed: int = 0

    def __post_init__(self) -> None:
        model, settings, accelerator = self.model, self.settings, self.accelerator
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("the model has no parameter that requires a gradient; peftkit.attach gives it some")
        if not self.examples:
            raise ConfigError("there are no examples to train on")
        if settings.evaluate_every is not None and not self.evaluation:
            raise ConfigError("train.evaluate_every needs held-out rows: set data.evaluation")
        lengths = [len(example.input_ids) for example in self.examples]
        cut = (settings.batch_size, settings.accumulate, accelerator.num_processes)
        self.order = Order(lengths, *cut, self.seed, settings.group_by_length)
        wanted = max(1, round(settings.epochs * self.order.steps_per_epoch))
        self.total_steps = min(wanted, settings.max_steps or wanted)
        self.evaluation_interval = self._interval(settings.evaluate_every)
        self.save_interval = self._interval(settings.save_every)
        if settings.gradient_checkpointing:
            _checkpoint_activations(model)
        model.to(accelerator.device)
        optimizer = _optimizer(model, settings)
        self.prepared, self.optimizer = accelerator.prepare(model, optimizer)
        # The loop does its own autocast; Accelerate's, on the model's forward, would cast all logits to float32.
        accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        scheduler = get_scheduler(
            "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
            optimizer,
            round(settings.warmup * self.total_steps if settings.warmup < 1 else settings.warmup),
            self.total_steps,
        )
        self.allocation = Allocation(model, optimizer, self.total_steps, in_place=accelerator.num_processes == 1)
        self.trained = Trained(model, optimizer, scheduler, self.allocation)
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints", accelerator)
        self.log = MetricsLog(self.run_dir / "metrics.jsonl", accelerator)
        self.line = ProgressLine(self.total_steps, accelerator.is_main_process)
        self.data_digest = hashlib.sha256(repr([e.input_ids for e in self.examples]).encode()).hexdigest()
        self.progress = _Progress()
        self.skipped = 0

    def _interval(self, every: float | None) -> int | None:
        if every is None:
            return None
        return max(1, round(every * self.order.steps_per_epoch) if every <= 1 else round(every))

    def run(self) -> Outcome:
        """Train to the end, going on from the newest checkpoint in `run_dir` if there is one; or until a signal comes.

        Raises:
            CheckpointError: the checkpoint to go on from is damaged or belongs to another run.
            NonFiniteError: a loss or gradient is not finite.
        """
        self._resume()
        self.log.start(self.progress.step)
        progress, received = self.progress, None
        with Interruption() as interruption, disable_input_dtype_casting(self.model, active=self._casts_are_idle()):
            self.model.train()
            while progress.step < self.total_steps and received is None and not self._is_stopped_early():
                started = time.monotonic()
                entry, received = self._step(interruption)
                progress.seconds += time.monotonic() - started
                self.log.write(progress.step, "train", entry | {"seconds": progress.seconds})
                self.line.show(progress.step, entry, progress.seconds)
                self._evaluate_and_save(stopping=received is not None)
        self.line.close()
        if received is None and self.settings.restore_best and progress.best_step not in (None, progress.step):
            self.checkpoints.restore_weights(self.checkpoints.path(progress.best_step), self.model)
        self.allocation.finish()
        last = self.checkpoints.path(progress.step)
        return Outcome(progress.step, self.total_steps, progress.best_step, progress.best_loss, received, last)

    def _casts_are_idle(self) -> bool:
        """Tell whether autocast takes back at once what PEFT casts to float32 before an update: without the casts, the same
        numbers and fewer copies. DoRA and other variants compute with the cast input before autocast sees it.
        """
        has_variant = any(getattr(module, "lora_variant", None) for module in self.model.modules())
        return self.accelerator.mixed_precision != "no" and not has_variant

    def _step(self, interruption: Interruption) -> tuple[dict[str, float], int | None]:
        """Make one optimiser step; return what to log, and a signal if any process has received one."""
        progress, accelerator = self.progress, self.accelerator
        batches = list(self._batches(progress.step))
        count = sum(map(self.objective.count, batches))
        items = float(accelerator.reduce(torch.tensor(float(count), device=accelerator.device)))
        loss = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.prepared):
                with accelerator.autocast():
                    summed = self.objective.loss(self.prepared, batch)
                accelerator.backward(summed * (accelerator.num_processes / items))
            loss += summed.detach()
        asked_to_stop = torch.tensor(float(interruption.received is not None), device=accelerator.device)
        total, stop = accelerator.reduce(torch.stack([loss, asked_to_stop])).tolist()
        mean_loss = total / items
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or math.inf))
        self._check_finite(mean_loss, norm)
        rate = self.trained.scheduler.get_last_lr()[0]
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

    def _check_finite(self, loss: float, norm: float) -> None:
        scaling = self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled()
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if math.isfinite(loss) and (math.isfinite(norm) or (scaling and self.skipped < _SKIPPED_STEPS_LIMIT)):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        raise NonFiniteError(
            f"{what} at step {self.progress.step + 1}; no weight was changed by it and the last checkpoint stands. "
            "Try a lower train.learning_rate, or train.precision=no"
        )

    def _batches(self, step: int) -> Iterator[Batch]:
        for numbers in self.order.micro_batches(step, self.accelerator.process_index):
            batch = on_device(self.accelerator.device, self.collate([self.examples[i] for i in numbers or [0]]))
            if not numbers:  # nothing is left for this process: it takes part with a batch that counts for nothing
                batch["labels"] = torch.full_like(batch["labels"], IGNORED)
            yield batch

    def _evaluate_and_save(self, stopping: bool) -> None:
        """Evaluate and save where the settings say so, at the end, and before stopping."""
        progress = self.progress
        at_end = progress.step == self.total_steps
        due = self.evaluation_interval is not None and (at_end or progress.step % self.evaluation_interval == 0)
        if due:
            metrics = self._evaluated()
            self.log.write(progress.step, "evaluation", metrics)
            self.line.message(
                f"evaluation at step {progress.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            )
            if self.allocation.is_final:  # before, the model is larger than it may end, and no such one is the best
                progress.evaluated(metrics["loss"])
        save_due = self.save_interval is not None and progress.step % self.save_interval == 0
        if due or save_due or at_end or stopping:
            self.checkpoints.save(progress.step, self.trained, dataclasses.asdict(progress), self.data_digest)
            self.checkpoints.keep({progress.step, progress.best_step or progress.step})

    def _evaluated(self) -> dict[str, float]:
        size = self.settings.evaluation_batch_size or self.settings.batch_size
        metrics = evaluate(
            self.model, self.evaluation, self.collate, self.accelerator, batch_size=size, objective=self.objective
        )
        return metrics | (self.hooks.evaluate() if self.hooks.evaluate is not None else {})

    def _is_stopped_early(self) -> bool:
        patience = self.settings.early_stopping
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _resume(self) -> None:
        """Go on from a checkpoint, where the settings want it and there is one."""
        wanted = self.settings.resume
        path = self.checkpoints.latest() if wanted == "auto" else None if wanted == "never" else Path(wanted)
        if path is not None:
            if not path.is_dir():
                raise CheckpointError(f"train.resume is {wanted!r}: there is no checkpoint directory of that name")
            self.progress = _Progress(**self.checkpoints.restore(path, self.trained, self.data_digest))
            if path.parent.resolve() != self.checkpoints.directory.resolve():  # another run's: its best is not here
                self.progress.best_step, self.progress.best_loss, self.progress.evaluations_since_best = None, None, 0
            self.line.message(f"resumed at step {self.progress.step} from {path}")


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return AdamW (arXiv:1711.05101) over the trained parameters, with weight decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2))


def _checkpoint_activations(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass, without reentrance; transformers has renamed how."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
