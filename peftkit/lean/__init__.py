"""The cheap training step: the same numbers with less memory and less time than PEFT's recipe."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from peftkit.lean.elementwise import recompute_feed_forwards, recompute_norms
from peftkit.lean.language_model import chunk_loss, has_chunked_loss, summed
from peftkit.lean.linear import Arithmetic, make_lean
from peftkit.quantization import release_inputs, share_dequantized
from peftkit.recording import extend

__all__ = ["Lean", "has_chunked_loss", "make_layers_lean", "prepare", "summed"]


@dataclass(frozen=True)
class Lean:
    """What of a training step is made lean. All of it gives PEFT's numbers, up to the rounding of an update's scale."""

    layers: bool = True
    """LoRA and AdaLoRA keep no copy of what they read (`peftkit.lean.low_rank`)."""
    loss: bool = True
    """A language model's logits are never whole (`peftkit.lean.language_model`)."""
    norms: bool = True
    """Norms keep their inputs alone (`peftkit.lean.elementwise`)."""
    feed_forward: bool = True
    """Feed-forward layers keep what their first layers give, alone."""
    weights: bool = False
    """4-bit layers dequantise once for a checkpointed block's second forward pass and its backward pass; that takes the
    memory of one block's weights in 16 bits."""
    exact: bool = False
    """LoRA rounds where PEFT rounds, for tests that compare bits."""

    @classmethod
    def of(cls, wanted: "Lean | bool") -> "Lean":
        """Return what True, all, and False, nothing, stand for."""
        if isinstance(wanted, cls):
            return wanted
        return cls(layers=bool(wanted), loss=bool(wanted), norms=bool(wanted), feed_forward=bool(wanted))


def prepare(model: nn.Module, wanted: Lean | bool) -> None:
    """Make a backbone's own parts lean, before it gets its first adapter."""
    lean = Lean.of(wanted)
    found: dict[str, Any] = {"settings": asdict(lean)}
    if lean.layers:
        release_inputs(model)
    if lean.weights:
        found["weights"] = share_dequantized(model)
    if lean.norms:
        found["norms"] = recompute_norms(model)
    if lean.feed_forward:
        found["feed_forward"] = recompute_feed_forwards(model)
    extend(
        model,
        "lean",
        found | {"loss": "in chunks, if the first step finds that it can be" if lean.loss else "the model's own"},
    )
    if lean.loss:
        chunk_loss(model)


def make_layers_lean(model: PeftModel, wanted: Lean | bool) -> None:
    """Make the layers lean that PEFT has put into a model, and note those that take PEFT's path, by reason."""
    lean = Lean.of(wanted)
    arithmetic: Arithmetic = "peft" if not lean.layers else "exact" if lean.exact else "lean"
    reasons = Counter(make_lean(layer, arithmetic) for layer in model.modules() if isinstance(layer, LoraLayer))
    lean_layers = reasons.pop(None, 0)
    extend(model.get_base_model(), "lean", {"layers": lean_layers, "layers_of_peft": dict(reasons)})
