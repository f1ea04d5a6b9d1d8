"""The cheap training step: the same numbers, with less memory and time than PEFT's own."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from peftkit.backbones.quantized_forwards import (
    quiet_int8_layers,
    release_int8_inputs,
    share_dequantized_weights,
)
from peftkit.lean.chunked_loss import chunk_loss, has_chunked_loss, summed
from peftkit.lean.norms_and_feed_forwards import recompute_feed_forwards, recompute_norms
from peftkit.recording import extend

__all__ = ["Lean", "has_chunked_loss", "prepare", "summed"]


@dataclass(frozen=True)
class Lean:
    """Which parts of a training step are made lean.

    All of them give PEFT's numbers, up to the rounding of a scaled update.
    """

    layers: bool = True
    """LoRA and AdaLoRA keep no copy of what they read (`peftkit.methods.lora.forward_backward`)."""
    loss: bool = True
    """A language model's logits are never whole (`peftkit.lean.chunked_loss`)."""
    norms: bool = True
    """Norms keep only their inputs (`peftkit.lean.norms_and_feed_forwards`)."""
    feed_forward: bool = True
    """Feed-forward layers keep only the outputs of their first layers."""
    weights: bool = False
    """4-bit layers dequantise once for a checkpointed block's second forward pass and its backward
    pass; that takes the memory of one block's weights in 16 bits."""
    exact: bool = False
    """LoRA rounds where PEFT rounds, for tests that compare bits."""

    @classmethod
    def of(cls, wanted: "Lean | bool") -> "Lean":
        """Return `wanted`, where True stands for all of the defaults and False for nothing."""
        if isinstance(wanted, cls):
            return wanted
        is_lean = bool(wanted)
        return cls(layers=is_lean, loss=is_lean, norms=is_lean, feed_forward=is_lean)


def prepare(model: nn.Module, wanted: Lean | bool) -> None:
    """Make a backbone's own parts lean, before it gets its first adapter."""
    lean = Lean.of(wanted)
    quiet_int8_layers(model)
    found: dict[str, Any] = {"settings": asdict(lean)}
    if lean.layers:
        release_int8_inputs(model)
    if lean.weights:
        found["weights"] = share_dequantized_weights(model)
    if lean.norms:
        found["norms"] = recompute_norms(model)
    if lean.feed_forward:
        found["feed_forward"] = recompute_feed_forwards(model)
    found["loss"] = "the model's own"
    if lean.loss:
        found["loss"] = "in chunks, if the first step finds that it can be"
    extend(model, "lean", found)
    if lean.loss:
        chunk_loss(model)
