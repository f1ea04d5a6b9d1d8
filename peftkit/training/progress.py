"""How far a run has come, which of its evaluations is the best, and how it ended."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from peftkit.errors import ConfigError, nearest
from peftkit.metrics import lower_is_better


@dataclasses.dataclass
class Outcome:
    """How a run ended: at which step of how many, where its best evaluation was and what it gave
    for ``train.best``, and the signal that stopped the run, if one did.
    """

    step: int
    total_steps: int
    best_step: int | None
    best_value: float | None
    interrupted: int | None
    checkpoint: Path


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds of a run beside its tensors. Seconds are those of the steps alone."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    seconds: float = 0.0
    tokens: int = 0
    batch_size: int | None = None
    """What `auto_batch` has come down to, if it had to; so for evaluations."""
    evaluation_batch_size: int | None = None

    def evaluated(self, metrics: Mapping[str, float], name: str, *, counts: bool = True) -> None:
        """Take note of an evaluation at the present step, by the metric `name`; one that is not a
        number is no best, and one that does not count is only checked.

        Raises:
            ConfigError: the evaluation did not produce that metric.
        """
        if name not in metrics:
            raise ConfigError(
                f"train.best is {name!r}, but the evaluation gives {', '.join(metrics)}{nearest(name, metrics)}"
            )
        if not counts:
            return
        value, sign = metrics[name], -1 if lower_is_better(name) else 1
        self.evaluations_since_best += 1
        if math.isfinite(value) and (
            self.best_value is None or sign * value > sign * self.best_value
        ):
            self.best_value, self.best_step, self.evaluations_since_best = value, self.step, 0

    def forget_best(self) -> None:
        """Start anew with the first evaluation that comes."""
        self.best_step, self.best_value, self.evaluations_since_best = None, None, 0
