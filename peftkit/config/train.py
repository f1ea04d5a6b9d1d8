"""The section `train` of a recipe's config.

It imports nothing heavy, so that `--help` is quick.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from peftkit.config.keys import section


@section
class TrainSettings:
    """How to train. A step of the optimiser takes batch_size x accumulate x processes examples."""

    epochs: PositiveFloat = 1.0
    """Passes over the training data; it may be a fraction."""
    max_steps: PositiveInt | None = None
    """Train for this many steps, whatever epochs says. If they need fewer rows than there are, as
    many are drawn at random, and no others are read.
    """
    batch_size: PositiveInt = 8
    """Examples in one forward pass on one device."""
    accumulate: PositiveInt = 1
    """Forward passes in a step; the gradient is that of one pass over all their examples."""
    global_batch_size: PositiveInt | None = None
    """What batch_size x accumulate x processes has to be, as a check; null checks nothing."""
    auto_batch: bool = False
    """If a step does not fit in memory, repeat it with half the batch_size and twice the passes; on
    one process only.
    """
    learning_rate: PositiveFloat = 2e-4
    """The highest learning rate, after the warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls to zero after the warm-up, or that it stays constant."""
    warmup: NonNegativeFloat = 0.03
    """Length of the linear warm-up: below 1, a fraction of all steps; from 1, a number of steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment of AdamW."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the second moment of AdamW."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient, over all trained parameters; null does not clip."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast: auto follows the dtype of the backbone; no computes in the dtypes as they are."""
    gradient_checkpointing: bool | Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = False
    """Compute activations again in the backward pass, which takes about a third more time: in all
    blocks (true), in a share of them (0.5), or in as few as memory_gib allows (auto).
    """
    memory_gib: PositiveFloat | None = None
    """With gradient_checkpointing: auto, how much memory of each device the training may take; null
    is all that is free.
    """
    evaluate_every: PositiveFloat | None = None
    """How often to evaluate: up to 1, a fraction of an epoch; above 1, a number of steps; null
    evaluates only before and after the training.
    """
    evaluation_batch_size: PositiveInt | None = None
    """Examples in one forward pass of an evaluation; null means batch_size."""
    save_every: PositiveFloat | None = None
    """How often to save a checkpoint, in the unit of evaluate_every; null saves at each evaluation
    and at the end.
    """
    best: str = "loss"
    """The metric that decides which evaluation is best: the lowest loss, perplexity or error rate,
    or the highest value of any other metric.
    """
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations without a better one."""
    restore_best: bool = True
    """End with the weights of the best evaluation instead of the last ones."""
    group_by_length: bool = True
    """Put examples of similar length into one step, to save padding; the order stays random."""
    curriculum: Literal["length"] | None = None
    """length takes the examples of the first epoch from short to long; later epochs are random."""
    resume: str = "auto"
    """auto continues the run in run_dir, if there is one; never refuses a run_dir that holds a run;
    anything else is the path of a checkpoint.
    """
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Where Accelerate sends the metrics, in addition to metrics.jsonl."""

    def __post_init__(self) -> None:
        if self.early_stopping is not None and self.evaluate_every is None:
            raise ValueError("early_stopping needs evaluate_every")
        if self.memory_gib is not None and self.gradient_checkpointing != "auto":
            raise ValueError("memory_gib needs gradient_checkpointing: auto")
