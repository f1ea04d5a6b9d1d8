"""What `step.py` measures of one step: time, live bytes, what blocks keep, the peak."""

import gc
import time
from collections import Counter
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.step_arms import loss_of
from benchmarks.step_gradients import GradientsInPlace
from peftkit.memory.storages import LiveStorages


def train_step(arm, model, optimizer, batch):
    """One optimiser step; the loss."""
    loss = loss_of(arm, model, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def timed_step(arm, model, optimizer, batch):
    """The loss of one step, and its seconds."""
    if batch["input_ids"].device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        loss = train_step(arm, model, optimizer, batch)
        end.record()
        torch.cuda.synchronize()
        return float(loss), start.elapsed_time(end) / 1000
    started = time.perf_counter()
    loss = train_step(arm, model, optimizer, batch)
    seconds = time.perf_counter() - started
    return float(loss), seconds


def weights_of(model):
    """All tensors that a model stores: parameters, buffers, and the states of 4-bit layers."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            tensors += [state.absmax, state.code]
            if state.nested:
                tensors += [state.offset, state.state2.absmax, state.state2.code]
    return tensors


def bytes_of(tensors):
    """Bytes of several tensors; a storage that some share counts once."""
    return sum(
        {id(each.untyped_storage()): each.untyped_storage().nbytes() for each in tensors}.values()
    )


def adapter_bytes(model):
    """Bytes of what is trained."""
    return bytes_of(p for p in model.parameters() if p.requires_grad)


class Explained(LiveStorages):
    """Says what is alive when as many bytes are as were at the peak of an earlier, equal run."""

    def __init__(self, peak):
        super().__init__()
        self.wanted, self.made, self.ignored = peak, {}, set()
        self.at_peak: Any = None  # bytes by kind, once the peak is reached
        self.last = ""

    def ignore(self, *tensors):
        """Do not count the storages of `tensors`, nor name them."""
        super().ignore(*tensors)
        self.ignored = set(self._known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Remember what makes the storages that are counted next."""
        output = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                known = self._known.get(id(storage))
                if known is not None and self.made.get(id(storage), (None,))[0] is not known:
                    kind = (
                        f"{func} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
                    )
                    self.made[id(storage)] = known, kind, storage.nbytes()
        if self.at_peak is None and self.live >= self.wanted:
            self.at_peak, self.last = Counter(), str(func)
            for key, known in self._known.items():
                made = self.made.get(key, (None,))
                if made[0] is known and key not in self.ignored:
                    self.at_peak[made[1]] += made[2]
        return output


def live_bytes(arm, model, batch, storages=None):
    """Bytes alive after the forward pass, and at the peak of both passes, above the weights."""
    gc.collect()
    with storages if storages is not None else LiveStorages() as counted, GradientsInPlace():
        counted.ignore(*weights_of(model))
        loss = loss_of(arm, model, batch)
        kept = counted.live
        loss.backward()
        peak = counted.peak
        del loss
        for parameter in model.parameters():
            parameter.grad = None
    return {"after_forward": kept, "peak": peak}


def saved_per_block(arm, model, batch):
    """The bytes that each block but the last keeps for the backward pass, on average."""
    blocks = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    entered = []
    gc.collect()
    with LiveStorages() as counted:
        counted.ignore(*weights_of(model))
        handles = [
            block.register_forward_pre_hook(lambda *_: entered.append(counted.live))
            for block in blocks
        ]
        try:
            loss = loss_of(arm, model, batch)
        finally:
            for handle in handles:
                handle.remove()
        del loss
    first = entered[: len(blocks)]  # the chunked loss may ask the model once more
    return (first[-1] - first[0]) / (len(blocks) - 1)


def saved_per_token_and_block(arm, model, batch):
    """The bytes that each token leaves in a block: a batch minus its first half, by length."""
    rows, tokens = batch["input_ids"].shape
    half = {name: tensor[:, : tokens // 2].contiguous() for name, tensor in batch.items()}
    more = saved_per_block(arm, model, batch) - saved_per_block(arm, model, half)
    return more / (rows * (tokens - tokens // 2))


def floor_per_token_and_block(config):
    """The least bytes of a token in a block, in 16 bits.

    Inputs of two norms, queries, attention output; keys, values; two products of the feed-
    forward part.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = config.num_key_value_heads * head
    return 8 * config.hidden_size + 4 * keys + 4 * config.intermediate_size
