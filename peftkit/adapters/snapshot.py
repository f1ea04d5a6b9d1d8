"""A model as it was, so that what is attached can come off again, bit for bit."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """A model as it was: every module's attributes, and the tensor behind every parameter.

    Costs no copy of a weight, unless `copy_weights` says that attaching writes into them.
    """

    def __init__(self, model: nn.Module, *, copy_weights: bool) -> None:
        self.model = model
        shared: dict[int, Any] = {}
        self._attributes = [
            (module, self._copied(vars(module), shared)) for module in model.modules()
        ]
        self._parameters = [
            (parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()
        ]
        self._values: list[tuple[Tensor, Tensor]] = [
            (buffer, buffer.clone()) for buffer in model.buffers()
        ]
        self._values += [(p, p.data.clone()) for p in model.parameters()] if copy_weights else []

    @staticmethod
    def _copied(attributes: dict[str, Any], shared: dict[int, Any]) -> dict[str, Any]:
        """Copy what can be changed in place; what two modules share stays one thing (PEFT's
        configs).
        """
        return {
            key: shared.setdefault(id(value), copy.copy(value))
            if isinstance(value, dict | set)
            else value
            for key, value in attributes.items()
        }

    def keep_trained_values(self) -> None:
        """Copy the parameters of the backbone that will be trained in place (biases, with
        ``bias="all"``).
        """
        self._values += [(p, p.data.clone()) for p, _, _ in self._parameters if p.requires_grad]

    def restore(self) -> None:
        """Make the model what it was."""
        shared: dict[int, Any] = {}
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(self._copied(attributes, shared))
        for parameter, data, requires_grad in self._parameters:
            if parameter.device == data.device and parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Make the model what it was for a moment, and then again what it is."""
        present = Snapshot(self.model, copy_weights=False)
        present.keep_trained_values()
        self.restore()
        try:
            yield
        finally:
            present.restore()
