"""The ways to train that `step.py` compares: how each prepares a backbone and computes the loss.

All of them: LoRA with r = 16 on all linear layers of the blocks, no dropout, the same first
weights; no attention mask, since rows are full; no cache. All but one: bfloat16 autocast around the
forward pass, as ``Trainer(bf16=True)`` and peftkit's loop have it.
"""

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

import peftkit
from peftkit.lean import Lean
from peftkit.losses.base import CausalLMLoss

TRL_VERSION = "1.16.0"
NO_TRL = (
    "TRL is not installed: python -m pip install --no-deps --target runs/trl "
    f"trl=={TRL_VERSION}, and PYTHONPATH=runs/trl"
)


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    about: str
    library: str
    """"peft", "trl" or "peftkit"."""
    lean: Lean | bool = False
    up_cast: bool = False
    """Whether PEFT's prepare_model_for_kbit_training goes first."""
    recomputed: float = 0.0
    """Share of the blocks that are checkpointed, without reentrance; the first ones."""
    loop: bool = False
    """Whether the loss is that of peftkit's loop, which also stops PEFT's casts, rather than the
    model's own.
    """
    autocast: bool = True


def _only(*names: str) -> Lean:
    return Lean(**{name: name in names for name in ("layers", "loss", "norms", "feed_forward")})


ARMS = {
    "a": Arm(
        "PEFT's recipe: prepare_model_for_kbit_training, all checkpointed",
        "peft",
        up_cast=True,
        recomputed=1,
    ),
    "b": Arm("PEFT, nothing up-cast, all checkpointed", "peft", recomputed=1),
    "c": Arm("PEFT, nothing up-cast, nothing checkpointed", "peft"),
    "c-plain": Arm(
        "… without autocast: adapters compute in the float32 that PEFT makes them",
        "peft",
        autocast=False,
    ),
    "d": Arm(
        f"TRL {TRL_VERSION}'s defaults: fused head, nothing up-cast, all checkpointed",
        "trl",
        recomputed=1,
    ),
    "e-layers": Arm("peftkit, lean layers alone", "peftkit", _only("layers")),
    "e-loss": Arm("… and the loss in chunks", "peftkit", _only("layers", "loss")),
    "e-norms": Arm("… and norms", "peftkit", _only("layers", "loss", "norms")),
    "e-feed-forward": Arm(
        "… and feed-forward layers", "peftkit", _only("layers", "loss", "norms", "feed_forward")
    ),
    "f": Arm("peftkit whole, as its loop runs it", "peftkit", True, loop=True),
    "f-quarter": Arm(
        "… a quarter of the blocks checkpointed", "peftkit", True, recomputed=0.25, loop=True
    ),
    "f-half": Arm("… half of the blocks checkpointed", "peftkit", True, recomputed=0.5, loop=True),
    "f-three-quarters": Arm(
        "… three quarters of the blocks checkpointed", "peftkit", True, recomputed=0.75, loop=True
    ),
    "f-all": Arm("… all checkpointed", "peftkit", True, recomputed=1, loop=True),
    "f-weights": Arm(
        "… all checkpointed, dequantised weights shared",
        "peftkit",
        Lean(weights=True),
        recomputed=1,
        loop=True,
    ),
}


def why_not(arm: str, storage: str | None) -> str | None:
    """Why an arm cannot run on a backbone of this storage, or None."""
    if arm == "d" and importlib.util.find_spec("trl") is None:
        return NO_TRL
    if storage is None and ARMS[arm].up_cast:
        return "prepare_model_for_kbit_training is for quantised backbones"
    if storage is None and arm == "f-weights":
        return "there is nothing to dequantise"
    return None


def prepared(arm: Arm, backbone: PreTrainedModel, first: dict[str, Tensor] | None = None) -> Any:
    """The backbone with its adapter (its weights are `first`, if given), in training mode."""
    config = peft.LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM")
    if arm.library == "peftkit":
        model = peftkit.attach(backbone, config, lean=arm.lean)
    else:
        if arm.up_cast:
            how = {
                "use_gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
            }
            backbone = peft.prepare_model_for_kbit_training(backbone, **how)
        config = copy.deepcopy(config)
        config.target_modules = "all-linear"
        model = peft.get_peft_model(backbone, config)
    if first is not None:
        with torch.no_grad():
            peft.set_peft_model_state_dict(model, first)
    if arm.recomputed:
        _checkpoint(model, arm.recomputed)
    if arm.library == "trl":
        _as_trl_does(model, quantized=getattr(backbone, "is_quantized", False))
    return model.train()


def _checkpoint(model: Any, share: float) -> None:
    base = model.get_base_model()
    enable = (
        getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    blocks = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = number < round(share * len(blocks))


def _as_trl_does(model: Any, quantized: bool) -> None:
    """Do to a PEFT model what SFTTrainer.__init__ does, with TRL's own function."""
    from trl.trainer.utils import add_fused_lm_head

    model.enable_input_require_grads()
    if quantized:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))


def loss_of(arm: Arm, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of a batch, ``input_ids`` and ``labels`` (rows, tokens)."""
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, arm.autocast):
        return _LOSSES[("loop" if arm.loop else arm.library)](model, batch)


def _own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def _loss_of_loop(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (
        CausalLMLoss().sum(model, batch) / batch["labels"][:, 1:].numel()
    )  # rows are full: every token counts


def _loss_of_trl(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """SFTTrainer.compute_loss, with loss_type="nll"."""
    output = model(**batch, use_cache=False, fused_lm_head=True)
    return (-output.log_probs).sum() / output.label_mask.sum().clamp(min=1)


_LOSSES: dict[str, Callable[[Any, dict[str, Tensor]], Tensor]] = {
    "peft": _own_loss,
    "peftkit": _own_loss,
    "trl": _loss_of_trl,
    "loop": _loss_of_loop,
}


@contextlib.contextmanager
def running(arm: Arm, model: nn.Module) -> Iterator[None]:
    """What stands around all steps of an arm."""
    with disable_input_dtype_casting(model, active=arm.loop):
        yield
