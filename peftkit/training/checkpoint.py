"""Resumable checkpoints: a new directory each, which exists once its manifest does. Tensors in
safetensors, the rest JSON.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peftkit.adapters.saving import adapter_tensors, write_adapter
from peftkit.errors import CheckpointError
from peftkit.files import WEIGHTS_NAME, read_json, read_tensors, write_json, write_tensors
from peftkit.methods.adalora.allocation import Allocation
from peftkit.methods.adalora.layer import fit_ranks
from peftkit.random_state import random_state, set_random_state
from peftkit.training.fsdp import Shards, shared_like, whole

_MANIFEST = "manifest.json"


@dataclass
class Trained:
    """Everything that a step changes."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    allocation: Allocation
    shards: Shards | None = None

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which each process has the whole model, to look at."""
        return contextlib.nullcontext() if self.shards is None else self.shards.gathered()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


class Checkpoints:
    """The checkpoints of one run: ``step-000120/`` with weights, optimiser, schedule, random states
    and progress.

    ``adapter/`` in each is a PEFT directory. A directory without a manifest, or with a file that
    its manifest does not describe, does not count.
    """

    def __init__(self, directory: Path, accelerator: Accelerator) -> None:
        self.directory = directory
        self._accelerator = accelerator

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.directory / f"step-{step:06d}"

    def save(self, step: int, trained: Trained, progress: dict[str, Any], data_digest: str) -> None:
        """Write the checkpoint of a step; every process takes part, and the first writes the
        manifest, last.
        """
        path = self.path(step)
        main, rank = self._accelerator.is_main_process, self._accelerator.process_index
        if main:
            _delete(path)  # what a killed run left half-written
            path.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        tensors, scalars = random_state()
        write_tensors(path / f"random-{rank}.safetensors", tensors)
        write_json(path / f"random-{rank}.json", scalars)
        weights = {name: whole(parameter) for name, parameter in trained.parameters().items()}
        moments, rest = _flat_optimizer(trained.optimizer)
        if main:
            write_tensors(path / "trainable.safetensors", weights)
            write_tensors(path / "optimizer.safetensors", moments)
            write_tensors(path / "allocation.safetensors", trained.allocation.state())
            scaler = self._accelerator.scaler
            state = {
                "step": step,
                "data": data_digest,
                "progress": progress,
                "processes": self._accelerator.num_processes,
                "optimizer": rest,
                "scheduler": trained.scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            write_json(path / "state.json", state)
        if isinstance(trained.model, PeftModel):
            self._save_adapter(trained.model, trained, path / "adapter")
        self._accelerator.wait_for_everyone()
        if main:
            files = [file for file in sorted(path.rglob("*")) if file.is_file()]
            write_json(
                path / _MANIFEST, {str(file.relative_to(path)): _sha256(file) for file in files}
            )
        self._accelerator.wait_for_everyone()

    def _save_adapter(self, model: PeftModel, trained: Trained, directory: Path) -> None:
        """Write the adapter, put together from the shares of all processes, and read it back: a
        share alone is no adapter.
        """
        tensors = {name: whole(value) for name, value in adapter_tensors(model, "default").items()}
        with trained.gathered():
            if self._accelerator.is_main_process:
                write_adapter(
                    model.get_base_model(), model.peft_config["default"], tensors, directory
                )
        if self._accelerator.is_main_process and trained.shards is not None:
            written = read_tensors(directory / WEIGHTS_NAME, CheckpointError)
            if any(not torch.equal(written[name], value.cpu()) for name, value in tensors.items()):
                raise CheckpointError(f"{directory} does not hold the adapter that is trained")

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint, or None."""
        found = sorted(self.directory.glob("step-*"), reverse=True)
        return next((path for path in found if _is_whole(path)), None)

    def keep(self, steps: set[int]) -> None:
        """Delete all checkpoints but those of `steps`, once the newest of these is known to be
        whole.
        """
        if self._accelerator.is_main_process and _is_whole(self.path(max(steps))):
            for path in self.directory.glob("step-*"):
                if path not in {self.path(step) for step in steps}:
                    _delete(path)

    def restore(self, path: Path, trained: Trained, data_digest: str) -> dict[str, Any]:
        """Put a checkpoint's state back, and return the progress that was saved with it.

        Raises:
            CheckpointError: it is not whole, or belongs to another model, other data or another
                number of processes.
        """
        if not _is_whole(path):
            raise CheckpointError(
                f"{path} is not a whole checkpoint: its manifest is missing or does not describe its files"
            )
        state = read_json(path / "state.json", CheckpointError)
        if state["processes"] != self._accelerator.num_processes:
            raise CheckpointError(
                f"{path} was written by {state['processes']} process(es), this run has {self._accelerator.num_processes}: "
                "start as many, or use another run_dir"
            )
        if state["data"] != data_digest:
            raise CheckpointError(
                f"{path} was written for other training examples; put them back, or use another run_dir"
            )
        self.restore_weights(path, trained.model)
        trained.allocation.load_state(
            read_tensors(path / "allocation.safetensors", CheckpointError)
        )
        moments = read_tensors(path / "optimizer.safetensors", CheckpointError)
        parameters = [
            parameter for group in trained.optimizer.param_groups for parameter in group["params"]
        ]
        trained.optimizer.load_state_dict(
            _nested_optimizer(moments, state["optimizer"], parameters)
        )
        trained.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        rank = self._accelerator.process_index
        set_random_state(
            read_tensors(path / f"random-{rank}.safetensors", CheckpointError),
            read_json(path / f"random-{rank}.json", CheckpointError),
        )
        progress: dict[str, Any] = state["progress"]
        return progress

    def restore_weights(self, path: Path, model: nn.Module) -> None:
        """Put back the trained weights alone.

        Raises:
            CheckpointError: they are not those that `model` trains.
        """
        saved = read_tensors(path / "trainable.safetensors", CheckpointError)
        fit_ranks(model, {name: value.shape for name, value in saved.items()})
        here = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        differing = sorted(saved.keys() ^ here.keys())
        differing += [
            name for name in saved.keys() & here.keys() if saved[name].shape != here[name].shape
        ]
        if differing:
            raise CheckpointError(
                f"{path} holds {len(saved)} trained weights, this model has {len(here)}; they differ in {differing[0]}"
            )
        with torch.no_grad():
            for name, parameter in here.items():
                parameter.copy_(shared_like(saved[name], parameter))


def data_digest(examples: Iterable[object]) -> str:
    """Return the sha256 of the examples' ``repr``, which must show all that is learned from."""
    sha = hashlib.sha256()
    for example in examples:
        sha.update(repr(example).encode())
    return sha.hexdigest()


def _delete(path: Path) -> None:
    """Delete a checkpoint, its manifest first, so that a half-deleted one does not count."""
    (path / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(CheckpointError, OSError):
        manifest = read_json(path / _MANIFEST, CheckpointError)
        return all(_sha256(path / name) == digest for name, digest in manifest.items())
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate an optimiser's state into whole tensors, named "parameter.key", and plain values."""
    state = optimizer.state_dict()
    entries = {
        f"{number}.{key}": value
        for number, each in state["state"].items()
        for key, value in each.items()
    }
    tensors = {name: whole(value) for name, value in entries.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
    return tensors, {"values": plain, "param_groups": json.loads(json.dumps(state["param_groups"]))}


def _nested_optimizer(
    tensors: dict[str, Tensor], rest: dict[str, Any], parameters: list[nn.Parameter]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **rest["values"]}.items():
        number, _, key = name.partition(".")
        shared = shared_like(value, parameters[int(number)]) if isinstance(value, Tensor) else value
        state.setdefault(int(number), {})[key] = shared
    return {"state": state, "param_groups": rest["param_groups"]}
