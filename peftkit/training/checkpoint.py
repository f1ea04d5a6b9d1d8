"""Checkpoints that a run can be resumed from.

Each is a new directory, which counts once its manifest is written. Tensors are in safetensors, the
rest in JSON.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer

from peftkit.adapters.saving import write_adapter
from peftkit.errors import CheckpointError
from peftkit.files import WEIGHTS_NAME, read_json, read_tensors, write_json, write_tensors
from peftkit.methods.method import methods_on
from peftkit.methods.peft_registry import adapter_tensors
from peftkit.random_state import random_state, set_random_state
from peftkit.training.callbacks import Callback
from peftkit.training.early_stopping import Progress
from peftkit.training.fsdp import shared_like, whole
from peftkit.training.json_and_tensors import join_state, split_state
from peftkit.training.state import TrainingState

_MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run, one directory ``step-000120/`` each.

    It holds the trained weights, the state of optimizer, schedule, method and callbacks, the random
    states of each process, and the progress. ``adapter/`` in it is a PEFT directory. A directory
    without a manifest, or with a file that its manifest does not describe, does not count.

    Args:
        directory: Where they are.
        accelerator: Its processes write and read them together.
        callbacks: Those of the training.
    """

    def __init__(
        self, directory: Path, accelerator: Accelerator, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.directory = directory
        self._accelerator = accelerator
        self._callbacks = [each for each in callbacks if _has_state(each)]

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.directory / f"step-{step:06d}"

    def save(self, state: TrainingState, data_digest: str) -> Path:
        """Write a checkpoint; every process takes part, and the first writes the manifest, last.

        Raises:
            CheckpointError: an optimizer, a scheduler or a callback has state of another kind than
                a checkpoint can hold.
        """
        path = self.path(state.step)
        is_main, rank = self._accelerator.is_main_process, self._accelerator.process_index
        if is_main:
            _delete(path)  # what a killed run left half-written
            path.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        callbacks = [[type(each).__name__, each.state_dict()] for each in self._callbacks]
        _write(path, f"random-{rank}", random_state())
        _write(path, "optimizer", state.optimizer.state_dict(), is_written=is_main)
        _write(path, "scheduler", state.scheduler.state_dict(), is_written=is_main)
        _write(path, "callbacks", callbacks, is_written=is_main)
        weights = {name: whole(value) for name, value in state.trained_parameters().items()}
        if is_main:
            write_tensors(path / "trainable.safetensors", weights)
            write_tensors(path / "method.safetensors", state.method.state())
            scaler = self._accelerator.scaler
            progress = {
                "step": state.step,
                "data": data_digest,
                "progress": vars(state.progress),
                "processes": self._accelerator.num_processes,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            write_json(path / "state.json", progress)
        if isinstance(state.model, PeftModel):
            self._save_adapter(state.model, state, path / "adapter")
        self._accelerator.wait_for_everyone()
        if is_main:
            files = [file for file in sorted(path.rglob("*")) if file.is_file()]
            manifest = {str(file.relative_to(path)): _sha256(file) for file in files}
            write_json(path / _MANIFEST, manifest)
        self._accelerator.wait_for_everyone()
        return path

    def _save_adapter(self, model: PeftModel, state: TrainingState, directory: Path) -> None:
        """Write the adapter, put together from the shares of all processes, and read it back.

        Under FSDP, one process's share alone is no adapter.
        """
        tensors = {name: whole(value) for name, value in adapter_tensors(model, "default").items()}
        with state.gathered():
            if self._accelerator.is_main_process:
                write_adapter(
                    model.get_base_model(), model.peft_config["default"], tensors, directory
                )
        if self._accelerator.is_main_process and state.shards is not None:
            written = read_tensors(directory / WEIGHTS_NAME, CheckpointError)
            for name, value in tensors.items():
                if not torch.equal(written[name], value.cpu()):
                    raise CheckpointError(f"{directory} does not hold the adapter that is trained")

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint, or None."""
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            if _is_whole(path):
                return path
        return None

    def keep(self, steps: set[int]) -> None:
        """Delete all checkpoints but those of `steps`, if the newest of these is whole."""
        if not self._accelerator.is_main_process or not _is_whole(self.path(max(steps))):
            return
        kept = {self.path(step) for step in steps}
        for path in self.directory.glob("step-*"):
            if path not in kept:
                _delete(path)

    def restore(self, path: Path, state: TrainingState, data_digest: str) -> None:
        """Put a checkpoint's state back, its progress included.

        Raises:
            CheckpointError: it is not whole, or belongs to another model, other data, another
                number of processes or other callbacks.
        """
        saved = self._checked(path, data_digest)
        self.restore_weights(path, state.model)
        state.method.load_state(read_tensors(path / "method.safetensors", CheckpointError))
        optimizer_state = _read(path, "optimizer")
        _share_out(optimizer_state, state.optimizer)
        state.optimizer.load_state_dict(optimizer_state)
        state.scheduler.load_state_dict(_read(path, "scheduler"))
        self._restore_callbacks(path)
        if saved["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(saved["scaler"])
        set_random_state(_read(path, f"random-{self._accelerator.process_index}"))
        state.progress = Progress(**saved["progress"])

    def _checked(self, path: Path, data_digest: str) -> dict[str, Any]:
        """Return ``state.json`` of a whole checkpoint that belongs to this run."""
        if not _is_whole(path):
            raise CheckpointError(
                f"{path} is not a whole checkpoint: its manifest is missing or does not describe "
                "its files"
            )
        saved = read_json(path / "state.json", CheckpointError)
        processes = self._accelerator.num_processes
        if saved["processes"] != processes:
            raise CheckpointError(
                f"{path} was written by {saved['processes']} process(es), this run has "
                f"{processes}: start as many, or use another run_dir"
            )
        if saved["data"] != data_digest:
            raise CheckpointError(
                f"{path} was written for other training examples; put them back, or use another "
                "run_dir"
            )
        return saved

    def _restore_callbacks(self, path: Path) -> None:
        saved = _read(path, "callbacks")
        expected = [name for name, _ in saved]
        found = [type(each).__name__ for each in self._callbacks]
        if found != expected:
            raise CheckpointError(
                f"{path} holds the state of the callbacks {expected}, and this training has "
                f"{found}: give it the same callbacks in the same order"
            )
        for callback, (_, callback_state) in zip(self._callbacks, saved, strict=True):
            callback.load_state_dict(callback_state)

    def restore_weights(self, path: Path, model: nn.Module) -> None:
        """Put back the trained weights alone.

        Raises:
            CheckpointError: they are not those that `model` trains.
        """
        saved = read_tensors(path / "trainable.safetensors", CheckpointError)
        shapes = {name: value.shape for name, value in saved.items()}
        for method in methods_on(model):
            method.fit_shapes(model, shapes)
        here = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        differing = sorted(saved.keys() ^ here.keys())
        for name in saved.keys() & here.keys():
            if saved[name].shape != here[name].shape:
                differing.append(name)
        if differing:
            raise CheckpointError(
                f"{path} holds {len(saved)} trained weights, this model has {len(here)}; they "
                f"differ in {differing[0]}"
            )
        with torch.no_grad():
            for name, parameter in here.items():
                parameter.copy_(shared_like(saved[name], parameter))


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


def _write(path: Path, name: str, state: Any, *, is_written: bool = True) -> None:
    """Write a nested state as ``NAME.json`` and ``NAME.safetensors``.

    Tensors that the processes share out are put together by all of them, whoever writes.
    """
    value, tensors = split_state(state, name)
    if is_written:
        write_tensors(path / f"{name}.safetensors", tensors)
        write_json(path / f"{name}.json", {"state": value})


def _read(path: Path, name: str) -> Any:
    """Return the nested state in ``NAME.json`` and ``NAME.safetensors``."""
    tensors = read_tensors(path / f"{name}.safetensors", CheckpointError)
    return join_state(read_json(path / f"{name}.json", CheckpointError)["state"], tensors)


def _share_out(state: dict[str, Any], optimizer: Optimizer) -> None:
    """Replace the whole tensors of an optimizer's state by this process's shares of them."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                entries[key] = shared_like(value, parameters[number])


def _has_state(callback: Callback) -> bool:
    return type(callback).state_dict is not Callback.state_dict
