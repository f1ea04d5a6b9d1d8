"""The states of the random generators that a step may draw from."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all generators that a step may draw from, on this process."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    numpy_state = [name, [int(key) for key in keys], *(float(value) for value in rest)]
    return tensors, {"python": [version, list(numbers), gauss], "numpy": numpy_state}


def set_random_state(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, numbers, gauss = scalars["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = scalars["numpy"]
    np.random.set_state(
        (name, np.array(keys, dtype=np.uint32), int(position), int(has_gauss), cached)
    )
