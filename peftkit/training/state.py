"""What a step of a training changes."""

import contextlib
import dataclasses

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peftkit.methods.method import MethodTraining
from peftkit.training.early_stopping import Progress
from peftkit.training.fsdp import Shards


@dataclasses.dataclass
class TrainingState:
    """What a step of a training changes: checkpoints hold it, and callbacks see it.

    Attributes:
        model: The model. Under FSDP each process has a share of every parameter.
        optimizer: The optimizer of the trained parameters.
        scheduler: Its learning-rate schedule.
        method: What the adapter's method does in each step.
        total_steps: Optimizer steps of the whole training.
        shards: How the processes share the model under FSDP.
        progress: How far the training has come.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    method: MethodTraining
    total_steps: int
    shards: Shards | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)

    @property
    def step(self) -> int:
        """How many optimizer steps have been taken."""
        return self.progress.step

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which each process can read the whole model."""
        return contextlib.nullcontext() if self.shards is None else self.shards.gathered()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        named = self.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}
