"""The Accelerator of a run, in the precision that suits its model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, is_initialized
from torch import nn

from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.training.model_checks import check_precision


def make_accelerator(settings: TrainSettings, model: nn.Module, run_dir: Path) -> Accelerator:
    """Return an Accelerator with a precision that suits the model.

    Accelerators that exist already keep their own precision.

    Args:
        settings: ``precision`` and ``trackers``.
        model: "auto" takes the precision from the dtype of its parameters.
        run_dir: Where trackers write.

    Raises:
        ConfigError: the device or the model cannot compute in that precision.
    """
    precision = _precision_of(model) if settings.precision == "auto" else settings.precision
    check_precision(precision, model)
    with _room_for(precision):
        return Accelerator(
            mixed_precision=precision, log_with=list(settings.trackers) or None, project_dir=run_dir
        )


def _precision_of(model: nn.Module) -> str:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if torch.bfloat16 in dtypes:
        return "bf16"
    if torch.float16 in dtypes:
        return "fp16"
    return "no"


@contextlib.contextmanager
def _room_for(precision: str) -> Iterator[None]:
    """Context in which an Accelerator of a precision can be made and others stay as they are.

    All Accelerators of a process share one precision and one number of accumulation steps. A second
    precision is refused, and a second number of steps replaces the first. Where an Accelerator
    exists that differs, the new one gets shared dictionaries to itself, and the old ones are put
    back. Written for accelerate 1.15 (state.py: ``_shared_state`` is the ``__dict__`` of each
    instance); what later looks the state up reads only the device and the processes there.
    """
    if not is_initialized() or _agrees(precision):
        yield
        return
    classes: tuple[Any, ...] = (AcceleratorState, GradientState)
    shared = {each: vars(each).get("_shared_state") for each in classes}
    if not all(isinstance(state, dict) for state in shared.values()):
        raise ConfigError(
            f"this process already has an Accelerator with mixed_precision "
            f"{AcceleratorState().mixed_precision!r}, and this version of accelerate does not let "
            f"another one compute in {precision!r}: set train.precision to the same"
        )
    for each in classes:
        each._shared_state = {}
    try:
        yield
    finally:
        for each, state in shared.items():
            each._shared_state = state


def _agrees(precision: str) -> bool:
    """Whether the Accelerators of this process are as the training loop needs its own."""
    return bool(AcceleratorState().mixed_precision == precision and GradientState().num_steps == 1)
