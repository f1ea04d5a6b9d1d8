"""Memory of a training step on a GPU, traced without one: the live storages of fake tensors.

    python -m benchmarks.step --traced [--rows "8B nf4 b1" ...] [--arms a f-all ...]
    [--skip-longest]

Nothing is computed: weights are fake, of the shapes of Llama 3. bitsandbytes' autograd function
runs for 4-bit layers, and what it stores for NF4 with double quantisation is counted; a product
with such a layer dequantises its weight, as on CUDA beyond 1536 tokens. Fake tensors lie on the
CPU, because autograd asks for a GPU otherwise; attention keeps what flash attention does; PEFT's
4-bit layers are told that autocast is on, as they find it on CUDA; TRL's Triton kernels write in
place, as they do. Not counted are the CUDA context, the workspaces of kernels, and what an
allocator loses between its blocks.
"""

import contextlib
import gc
import itertools
import math
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_arms import ARMS, prepared, running, why_not
from benchmarks.step_backbones import as_fake, config_of, random_llama, use_flash_stand_in
from benchmarks.step_measures import (
    Explained,
    adapter_bytes,
    bytes_of,
    floor_per_token_and_block,
    live_bytes,
    saved_per_token_and_block,
    weights_of,
)
from peftkit.memory.fake import AllNonzero
from peftkit.memory.storages import LiveStorages
from peftkit.methods.lora import layer as linear

GIB = 2**30
MODELS = {"1B": "Llama-3.2-1B", "8B": "Llama-3.1-8B"}
TRACED = {
    f"{size} {storage or 'bf16'} b{rows}": (MODELS[size], storage, rows, 2048)
    for storage in ("nf4", None)
    for size in ("8B", "1B")
    for rows in (1, 8)
}
TRACED_ARMS = ["a", "b", "c", "d", "f", "f-half", "f-three-quarters", "f-all", "f-weights"]
EXPLAINED_ROWS, EXPLAINED_ARMS = ("8B nf4 b1", "8B nf4 b8", "1B nf4 b8"), ("a", "d", "f", "f-all")
LONGEST_ARMS = ("a", "b", "c", "d", "f", "f-half", "f-all")
BUDGETS = (8, 12, 16, 24)  # GiB
LENGTHS = (512, 2048, 8192, 32768, 131072)


class _Dequantised(TorchDispatchMode):
    """Lets a product with a 4-bit weight dequantise it first, as bitsandbytes does on CUDA."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            x, _, shape, *_ = args
            return torch.nn.functional.linear(
                x, torch.empty(tuple(shape), dtype=x.dtype, device=x.device)
            )
        return func(*args, **(kwargs or {}))


class _InPlace:
    """Stands for a Triton kernel, which makes no tensor."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def _trl_as_on_cuda():
    try:
        from trl.kernels import chunked_logprob
        from trl.trainer import utils
    except ImportError:
        yield
        return
    kernels = {
        "_forward_kernel": _InPlace(),
        "_backward_kernel": _InPlace(),
        "_use_triton": lambda device: True,
    }
    kernels |= {
        "_addmm_fp32": lambda acc, a, b: None,
        "triton": mock.Mock(cdiv=lambda a, b: -(-a // b)),
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in kernels.items():
            stack.enter_context(mock.patch.object(chunked_logprob, name, stand_in, create=True))
        stack.enter_context(mock.patch.object(utils, "_use_triton", return_value=True))
        yield


@contextlib.contextmanager
def _lean_layers_as_on_cuda():
    """Let lean layers take a fake parameter for a plain one.

    It is not of the class Parameter, by which they know that nobody has sharded it.
    """
    with mock.patch.object(linear, "_is_plain", return_value=True):
        yield


@contextlib.contextmanager
def _autocast_as_on_cuda():
    """Turn CUDA's autocast on.

    PEFT's layers for bitsandbytes ask for it, and cast by themselves where it is off.
    """
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


def _fake_batch(rows, tokens):
    return {name: torch.empty(rows, tokens, dtype=torch.int64) for name in ("input_ids", "labels")}


class _Modes:
    """A way to count with `storages` what happens beneath the stand-ins."""

    def __init__(self, storages):
        self.storages = storages

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        storages = self.stack.enter_context(self.storages)
        self.stack.enter_context(AllNonzero())
        self.stack.enter_context(_Dequantised())
        return storages

    def __exit__(self, *problem):
        return self.stack.__exit__(*problem)


class Trace:
    """One arm on one fake backbone, of which batches of any shape can be traced."""

    def __init__(self, shape, storage, arm):
        self.arm = ARMS[arm]
        self.contexts = contextlib.ExitStack()
        self.shape, self.storage = shape, storage

    def __enter__(self):
        backbone = random_llama(self.shape, self.storage, "meta")
        use_flash_stand_in(backbone)
        self.model = prepared(self.arm, backbone)
        for context in (
            FakeTensorMode(),
            _trl_as_on_cuda(),
            _autocast_as_on_cuda(),
            _lean_layers_as_on_cuda(),
        ):
            self.contexts.enter_context(context)
        as_fake(self.model)
        chunked = vars(backbone).get("_peftkit_chunked_loss")
        if chunked is not None:
            chunked._ask = lambda *_: vars(chunked).update(
                shift=1
            )  # what it would find out from values
        self.contexts.enter_context(running(self.arm, self.model))
        return self

    def __exit__(self, *problem):
        self.contexts.close()
        del self.model
        gc.collect()

    def memory(self, rows, tokens):
        """Bytes of weights, of what is trained with AdamW's states, and of the rest at the peak."""
        trained = adapter_bytes(self.model)
        found = live_bytes(self.arm, self.model, _fake_batch(rows, tokens), _Modes(LiveStorages()))
        weights = bytes_of(weights_of(self.model)) - trained
        total = weights + 3 * trained + found["peak"]
        return {
            "weights": weights,
            "adapters": trained,
            "states": 2 * trained,
            **found,
            "total": total,
        }

    def saved(self, rows, tokens):
        """Bytes that each token leaves in a block."""
        with AllNonzero(), _Dequantised():
            return saved_per_token_and_block(self.arm, self.model, _fake_batch(rows, tokens))

    def at_peak(self, rows, tokens, peak):
        """The largest kinds of tensors that are alive at the peak."""
        explained = Explained(peak)
        live_bytes(self.arm, self.model, _fake_batch(rows, tokens), _Modes(explained))
        return {"last": explained.last, "largest": explained.at_peak.most_common(8)}

    def longest(self, budgets):
        """The longest sequence that fits each budget at batch 1.

        Between traced lengths, the peak is taken to be a straight line.
        """
        known = []
        for tokens in LENGTHS:
            known.append((tokens, self.memory(1, tokens)["total"] / GIB))
            if known[-1][1] > max(budgets):
                break
        return {budget: longest_of(known, budget) for budget in budgets}


def longest_of(known, budget):
    """The longest length for a budget in steps of 64, from (length, GiB); 0 if there is none."""
    if known[0][1] > budget:
        return 0
    for (short, less), (long, more) in itertools.pairwise(known):
        if more > budget:
            return math.floor((short + (long - short) * (budget - less) / (more - less)) / 64) * 64
    return known[-1][0]


def traced_rows(names, arms, longest, keep):
    """Trace each row and arm; `keep` is called with the results whenever there are more."""
    found = []
    wanted: dict[Any, Any] = {}
    for name in names:
        shape, storage, rows, tokens = TRACED[name]
        wanted.setdefault((shape, storage), []).append((name, rows, tokens))
    for (shape, storage), each in wanted.items():
        for arm in arms:
            if reason := why_not(arm, storage):
                found += [{"row": name, "arm": arm, "not_run": reason} for name, *_ in each]
                continue
            with Trace(shape, storage, arm) as trace:
                found += _traced(trace, arm, each)
            keep(found)
    for shape, storage in wanted if longest else ():
        for arm in (arm for arm in arms if arm in LONGEST_ARMS and not why_not(arm, storage)):
            with Trace(shape, storage, arm) as trace:
                fits = trace.longest(BUDGETS)
            found.append(
                {"model": shape, "storage": storage or "bf16", "arm": arm, "longest": fits}
            )
            print(f"{shape} {storage or 'bf16'} {arm}: {fits}", flush=True)
            keep(found)
    return found


def _traced(trace, arm, wanted):
    saved, floor = trace.saved(1, 2048), floor_per_token_and_block(config_of(trace.shape))
    for name, rows, tokens in wanted:
        about = {
            "row": name,
            "model": trace.shape,
            "storage": trace.storage or "bf16",
            "arm": arm,
            "rows": rows,
        }
        about |= {
            "tokens": tokens,
            **trace.memory(rows, tokens),
            "saved_per_token_and_block": saved,
            "floor": floor,
        }
        if name in EXPLAINED_ROWS and arm in EXPLAINED_ARMS:
            about["at_peak"] = trace.at_peak(rows, tokens, about["peak"])
        print(
            f"{name} {arm}: {about['total'] / GIB:.2f} GiB, {saved:.0f} B/token/block", flush=True
        )
        yield about
