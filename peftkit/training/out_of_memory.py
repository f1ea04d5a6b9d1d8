"""What helps when memory runs out: other settings, or the same step in smaller passes."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import psutil
import torch

from peftkit.config.train import TrainSettings
from peftkit.errors import OutOfMemoryError

Place = Literal["load", "attach", "forward", "backward", "step", "evaluation"]
_NAMES: dict[Place, str] = {
    "load": "while the backbone was loaded",
    "attach": "while the adapter was attached",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "step": "in the optimiser's step",
    "evaluation": "in the evaluation",
}
_Result = TypeVar("_Result")


@contextlib.contextmanager
def explained(
    place: Place,
    train: TrainSettings,
    *,
    quantization: str | None = None,
    longest: int | None = None,
) -> Iterator[None]:
    """Context in which running out of memory is an error that says what to change.

    Args:
        place: What is done inside.
        train: The settings of the run; what they have already is not proposed.
        quantization: How the backbone is stored.
        longest: The length of the longest example in tokens, if the memory depends on it.

    Raises:
        OutOfMemoryError: memory ran out, of the GPU or of the machine.
    """
    try:
        yield
    except RuntimeError as problem:
        if not _is_lack_of_memory(problem):
            raise
        text = f"out of memory {_NAMES[place]}: {_in_use()}. What helps, in this order:"
        for remedy in _remedies(place, train, quantization, longest):
            text += f"\n  {remedy}"
        raise OutOfMemoryError(text) from problem


def _is_lack_of_memory(problem: RuntimeError) -> bool:
    # A GPU's lack of memory has a class; that of the CPU can only be told by its text.
    return isinstance(problem, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(problem)


def until_it_fits(
    attempt: Callable[[int], _Result], size: int, *, may_halve: bool, tell: Callable[[int], None]
) -> _Result:
    """Return what `attempt` returns for a batch size, halved as often as memory runs out.

    Args:
        attempt: Takes a batch size, and begins again each time.
        size: The first size, in examples.
        may_halve: False for one attempt only.
        tell: Is called with each smaller size before it is tried.

    Raises:
        OutOfMemoryError: one example does not fit, or `may_halve` is False.
    """
    while True:
        try:
            return attempt(size)
        except OutOfMemoryError:
            if not may_halve or size == 1:
                raise
        # Not in the handler above, where the error still holds all tensors of the attempt.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = math.ceil(size / 2)
        tell(size)


def _remedies(
    place: Place, train: TrainSettings, quantization: str | None, longest: int | None
) -> list[str]:
    """Return the flags that help at a place, the most effective and the least costly first."""
    found = []
    if place in ("forward", "backward"):
        if train.batch_size > 1:
            passes = train.batch_size * train.accumulate
            smaller = f"--train.batch_size 1 --train.accumulate {passes}"
            found.append(f"{smaller}  (the same step in smaller passes)")
        if not train.gradient_checkpointing:
            found.append("--train.gradient_checkpointing true  (a third more time)")
    if place == "evaluation" and (train.evaluation_batch_size or train.batch_size) > 1:
        found.append("--train.evaluation_batch_size 1  (the same numbers)")
    if quantization not in ("nf4", "fp4"):
        found.append("--model.quantization nf4  (a backbone of 4 bits a weight)")
    if longest and longest > 1 and place in ("forward", "backward", "evaluation"):
        found.append(
            f"--data.max_length {longest // 2}  (the longest example now has {longest} tokens)"
        )
    if place in ("attach", "step"):
        found.append("a smaller adapter: a lower rank, a narrower bottleneck, fewer targets")
    return [*found, "a smaller backbone"]


def _in_use() -> str:
    """Return how much memory is used and free: of the GPU if there is one, else of the machine."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        used = torch.cuda.memory_allocated()
        where = torch.cuda.get_device_name()
    else:
        machine = psutil.virtual_memory()
        free, total = machine.available, machine.total
        used = psutil.Process().memory_info().rss
        where = "this machine"
    return (
        f"this process uses {used / 2**30:.2f} GiB, {free / 2**30:.2f} of {total / 2**30:.2f} GiB "
        f"are free on {where}"
    )
