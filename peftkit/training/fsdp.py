"""A model whose parameters are sharded over the processes by FSDP2, and put together again."""

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from peftkit import anatomy
from peftkit.training.launch_checks import uses_fsdp


def is_in_use() -> bool:
    """Whether this process is one of several that were launched to shard a model."""
    return uses_fsdp() and torch.distributed.is_initialized()


class Shards:
    """A model under FSDP2 (torch's ``fully_shard``): each process holds its share of every
    parameter.

    Each block of the model, as `peftkit.anatomy` finds them, is put together for its own forward
    and backward pass. What is outside the blocks stays together for the whole step. Quantised
    weights are sharded as they are stored, in any storage dtype; their quantisation constants are
    on every process. The model's own parameter objects stay alive without memory: `dissolve` fills
    them again, and whatever refers to them (PEFT's layers, `peftkit.detach`) remains right.

    This calls torch itself. Accelerate's wrapper around the same function works on GPUs only, takes
    the blocks' names from the model or the user, and leaves out 4-bit weights that are stored as
    integers (accelerate 1.15, utils/fsdp_utils.py). `accelerate launch` still says how many
    processes there are, where, and whether a block's weights are freed between its forward and its
    backward pass (``fsdp_reshard_after_forward``).

    Args:
        model: Whole on each process's device; changed in place.
        accelerator: Its processes share the parameters.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self._model = model
        for parameter in model.parameters():
            if parameter.requires_grad:  # random values start the same everywhere, as under DDP
                torch.distributed.broadcast(parameter.data, 0)
        self._before = [(module, type(module), _registered(module)) for module in model.modules()]
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        storages = {id(parameter): parameter.untyped_storage() for parameter in model.parameters()}
        self._sizes: dict[int, int] = {}  # bytes to allocate again, by the id of a parameter
        for number, storage in storages.items():
            if storage.resizable():
                self._sizes[number] = storage.nbytes()
        self._reshards = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=self._reshards)
        fully_shard(model, mesh=mesh)
        for number in self._sizes:
            storages[number].resize_(0)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Context in which each process holds the whole model.

        Forward passes then need no other process, and may differ in number. Nothing may be written
        to a parameter, and ``state_dict`` may not be called.
        """
        units = self._units()
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                reshards = self._reshards and unit is not self._model
                unit.set_reshard_after_forward(reshards, recurse=False)
                unit.reshard()

    @torch.no_grad()
    def dissolve(self) -> None:
        """Give each process the whole model back, as it was before but trained."""
        for unit in self._units():
            unit.reshard()
        filled: set[int] = set()
        for module, _, attributes in self._before:
            for name, original in attributes["_parameters"].items():
                if original is not None and id(original) not in filled:
                    filled.add(id(original))
                    self._fill(original, getattr(module, name))
        for module, kind, attributes in self._before:
            module.__class__ = kind
            vars(module).update(attributes)

    def _fill(self, original: nn.Parameter, shared: Tensor) -> None:
        """Put the values of a sharded parameter into the original, which lost its memory."""
        values = whole(shared)
        storage = original.untyped_storage()
        size = self._sizes.get(id(original), 0)
        if storage.nbytes() < size:
            storage.resize_(size)
        if size or original.requires_grad:
            original.data.copy_(values)

    def _units(self) -> list[Any]:
        return [module for module in self._model.modules() if isinstance(module, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as one plain tensor, and any other as it is.

    Every process has to call this.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole value sharded like `parameter`, if it has its shape; else as it is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    shared: Tensor = distribute_tensor(
        value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None
    )
    return shared


def _blocks(model: nn.Module) -> list[nn.Module]:
    bare: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    blocks: list[nn.Module] = []
    for stack in anatomy.stacks(bare):
        blocks += [bare.get_submodule(block.name) for block in stack.blocks]
    return blocks


def _registered(module: nn.Module) -> dict[str, Any]:
    """Return a module's parameters and hooks, which is what FSDP2 exchanges."""
    registered = {}
    for name, value in vars(module).items():
        if isinstance(value, dict) and (name == "_parameters" or "hooks" in name):
            registered[name] = copy.copy(value)
    return registered
