"""What a training run can be told. Imports nothing heavy, so that `--help` is quick."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from peftkit.config.keys import section


@section
class TrainSettings:
    """How to train. Steps are optimiser steps; a batch is `batch_size` x `accumulate` x processes
    examples.
    """

    epochs: PositiveFloat = 1.0
    """Passes over the training data; a fraction is allowed."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps, whatever `epochs` says."""
    batch_size: PositiveInt = 8
    """Examples in one forward pass on one device."""
    accumulate: PositiveInt = 1
    """Forward passes a step; the gradient is that of one pass over all of them."""
    global_batch_size: PositiveInt | None = None
    """What `batch_size` x `accumulate` x processes must be; null takes what it is."""
    auto_batch: bool = False
    """Where a step does not fit in memory, make it again with half the batch_size and twice the
    passes; on one process.
    """
    learning_rate: PositiveFloat = 2e-4
    """Peak of the schedule."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """From the peak to zero, or constant, after the warm-up."""
    warmup: NonNegativeFloat = 0.03
    """Steps of linear warm-up: below 1 a fraction of all steps, from 1 on a number of steps."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's second moment."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient over all trained parameters; null does not clip."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast: "auto" follows the backbone's dtype, "no" computes in the dtypes as they are."""
    gradient_checkpointing: bool | Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = False
    """Compute activations again in the backward pass, for a third more time: in all blocks, in a
    share of them (0.5), or with "auto" in as few as fit into `memory_gib`."""
    memory_gib: PositiveFloat | None = None
    """What the training may take of each device, with gradient_checkpointing: auto; null is what is
    free.
    """
    evaluate_every: PositiveFloat | None = None
    """Up to 1 a fraction of an epoch, above 1 a number of steps; null only evaluates before and
    after training.
    """
    evaluation_batch_size: PositiveInt | None = None
    """Examples in one forward pass of an evaluation; null is `batch_size`."""
    save_every: PositiveFloat | None = None
    """A resumable checkpoint this often, in the unit of `evaluate_every`; null saves at each
    evaluation and at the end.
    """
    best: str = "loss"
    """The metric of the evaluation that tells which is best: the highest, or the lowest loss,
    perplexity or error rate.
    """
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations without a better one."""
    restore_best: bool = True
    """End with the weights of the best evaluation instead of the last."""
    group_by_length: bool = True
    """Put examples of similar length into one step, which saves padding; the order stays random."""
    resume: str = "auto"
    """"auto" goes on where a run in `run_dir` stopped, "never" refuses a used `run_dir`; or the
    path of a checkpoint.
    """
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Where metrics go through Accelerate, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        if self.early_stopping is not None and self.evaluate_every is None:
            raise ValueError("early_stopping needs evaluate_every")
        if self.memory_gib is not None and self.gradient_checkpointing != "auto":
            raise ValueError("memory_gib needs gradient_checkpointing: auto")
