"""What a user or a task adds to a training, without a change to the loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.training.early_stopping import Outcome
from peftkit.training.state import TrainingState


class Callback:
    """Something to do at the events of a training: override those that you need.

    Every process calls every event, in the order in which the callbacks were given. A callback with
    a state of its own that steps depend on overrides `state_dict` and `load_state_dict`, so that a
    resumed run goes on as if it had not stopped. Example, a norm that is written down at each step:

        class Norms(Callback):
            def __init__(self):
                self.norms = []

            def on_step_end(self, state, metrics):
                self.norms.append(metrics["gradient_norm"])
    """

    def on_train_start(self, state: TrainingState) -> None:
        """Before the first step, after a checkpoint has been loaded if there is one."""

    def before_optimizer_step(self, state: TrainingState) -> None:
        """The step's gradients are complete and clipped, and may still be changed."""

    def after_optimizer_step(self, state: TrainingState) -> None:
        """The parameters have changed; the gradients are still there.

        ``state.step``, from 1 on, is the number of this step.
        """

    def on_step_end(self, state: TrainingState, metrics: Mapping[str, float]) -> None:
        """A step is over.

        Args:
            state: Gradients have been freed, and the scheduler has taken its step.
            metrics: ``loss``, ``gradient_norm``, ``learning_rate`` and ``items`` of the step.
        """

    def measure(self, state: TrainingState) -> Mapping[str, float]:
        """Return more metrics for an evaluation; those of the first process count.

        The model is whole on each process, and in the mode in which it is trained.
        """
        return {}

    def on_evaluation(self, state: TrainingState, metrics: Mapping[str, float]) -> None:
        """An evaluation is over; `metrics` holds its loss and what callbacks have measured."""

    def on_checkpoint(self, state: TrainingState, path: Path) -> None:
        """The directory `path` holds a whole checkpoint."""

    def on_train_end(self, state: TrainingState, outcome: Outcome) -> None:
        """The training is over, or stopped by a signal; the model is as the caller will get it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors, numbers, text, lists and dictionaries.

        The first process writes its own, and every process reads that.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
