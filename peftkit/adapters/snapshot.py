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
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._parameters: list[tuple[nn.Parameter, Tensor, bool]] = []
        self._values: list[tuple[Tensor, Tensor]] = []
        shared: dict[int, Any] = {}
        for module in model.modules():
            self._attributes.append((module, self._copied(vars(module), shared)))
        for parameter in model.parameters():
            self._parameters.append((parameter, parameter.data, parameter.requires_grad))
            if copy_weights:
                self._values.append((parameter, parameter.data.clone()))
        for buffer in model.buffers():
            self._values.append((buffer, buffer.clone()))

    @staticmethod
    def _copied(attributes: dict[str, Any], shared: dict[int, Any]) -> dict[str, Any]:
        """Copy a module's attributes, and the dictionaries and sets among them.

        What two modules share stays one thing, such as PEFT's configs. `shared` has the copies so
        far, by the id of the original.
        """
        copies = dict(attributes)
        for key, value in attributes.items():
            if isinstance(value, dict | set):
                copies[key] = shared.setdefault(id(value), copy.copy(value))
        return copies

    def keep_trained_values(self) -> None:
        """Copy the parameters that are trained in place, such as biases with ``bias="all"``."""
        for parameter, _, _ in self._parameters:
            if parameter.requires_grad:
                self._values.append((parameter, parameter.data.clone()))

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
