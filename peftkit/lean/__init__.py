"""The cheap training step: the same numbers with less memory and less time than PEFT's recipe."""

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
    """What of a training step is made lean. All of it gives PEFT's numbers, up to the rounding of
    an update's scale.
    """

    layers: bool = True
    """LoRA and AdaLoRA keep no copy of what they read (`peftkit.methods.lora.forward_backward`)."""
    loss: bool = True
    """A language model's logits are never whole (`peftkit.lean.chunked_loss`)."""
    norms: bool = True
    """Norms keep their inputs alone (`peftkit.lean.norms_and_feed_forwards`)."""
    feed_forward: bool = True
    """Feed-forward layers keep what their first layers give, alone."""
    weights: bool = False
    """4-bit layers dequantise once for a checkpointed block's second forward pass and its backward
    pass; that takes the memory of one block's weights in 16 bits."""
    exact: bool = False
    """LoRA rounds where PEFT rounds, for tests that compare bits."""

    @classmethod
    def of(cls, wanted: "Lean | bool") -> "Lean":
        """Return what True, all, and False, nothing, stand for."""
        if isinstance(wanted, cls):
            return wanted
        return cls(
            layers=bool(wanted), loss=bool(wanted), norms=bool(wanted), feed_forward=bool(wanted)
        )


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
    extend(
        model,
        "lean",
        found
        | {
            "loss": "in chunks, if the first step finds that it can be"
            if lean.loss
            else "the model's own"
        },
    )
    if lean.loss:
        chunk_loss(model)
