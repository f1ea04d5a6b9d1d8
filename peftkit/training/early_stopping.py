"""Early stopping and the best evaluation: how far a run has come, and how it ended."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from peftkit.errors import ConfigError, nearest
from peftkit.metrics import lower_is_better


@dataclasses.dataclass
class Outcome:
    """How a run ended."""

    step: int
    total_steps: int
    best_step: int | None
    """The step of the best evaluation; None if there was none."""
    best_value: float | None
    """The value of ``train.best`` there."""
    interrupted: int | None
    """The signal that stopped the run; None if it was complete."""
    checkpoint: Path
    """The last one."""


@dataclasses.dataclass
class Progress:
    """How far a run has come, as a checkpoint holds it."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    seconds: float = 0.0
    """Those of the steps alone, without evaluations and checkpoints."""
    tokens: int = 0
    batch_size: int | None = None
    """The size to which `auto_batch` has lowered it; None if it has not."""
    evaluation_batch_size: int | None = None
    """The same for evaluations."""

    def evaluated(self, metrics: Mapping[str, float], name: str, *, counts: bool = True) -> None:
        """Take note of an evaluation at the present step.

        Args:
            metrics: What was measured.
            name: The metric that decides which evaluation is the best; NaN is never the best.
            counts: False where the evaluation cannot be the best, and is only checked.

        Raises:
            ConfigError: the evaluation did not produce that metric.
        """
        if name not in metrics:
            raise ConfigError(
                f"train.best is {name!r}, but the evaluation gives "
                f"{', '.join(metrics)}{nearest(name, metrics)}"
            )
        if not counts:
            return
        value = metrics[name]
        self.evaluations_since_best += 1
        if math.isfinite(value) and self._is_better(value, name):
            self.best_step, self.best_value = self.step, value
            self.evaluations_since_best = 0

    def _is_better(self, value: float, name: str) -> bool:
        if self.best_value is None:
            return True
        return value < self.best_value if lower_is_better(name) else value > self.best_value

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Return whether the best evaluation is `patience` evaluations ago; None never is."""
        return patience is not None and self.evaluations_since_best >= patience

    def forget_best(self) -> None:
        """Let the next evaluation be the best so far."""
        self.best_step, self.best_value = None, None
        self.evaluations_since_best = 0
