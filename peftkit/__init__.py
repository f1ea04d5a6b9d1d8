"""Parameter-efficient tuning for people with one small GPU.

The public surface, and nothing else. Names are imported when they are first used, so that ``import
peftkit`` is quick.

PEFT learns of peftkit's methods when ``import peftkit`` finds that `peft` is imported already, or
else when one is attached or loaded. So ``import peft, peftkit``, in this order, is what a bare
``peft.PeftModel.from_pretrained`` of one of their directories needs.
"""

import importlib
import sys
from typing import Any

from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes

__version__ = "0.1.0.dev0"

_HOME = {
    "AdaLoraCallback": "peftkit.methods.adalora.trainer_callback",
    "AdaLoraConfig": "peft",
    "BottleneckConfig": "peftkit.methods.bottleneck.model",
    "IA3Config": "peft",
    "LoraConfig": "peft",
    "PrefixConfig": "peftkit.methods.prefix.model",
    "attach": "peftkit.adapters.attaching",
    "combine": "peftkit.adapters.combining",
    "detach": "peftkit.adapters.attaching",
    "export_lora": "peftkit.adapters.export",
    "Lean": "peftkit.lean",
    "load": "peftkit.adapters.saving",
    "load_backbone": "peftkit.backbones.loading",
    "load_tokenizer": "peftkit.backbones.loading",
    "merge": "peftkit.adapters.merging",
    "record": "peftkit.recording",
    "save": "peftkit.adapters.saving",
}

__all__ = [
    "AdaLoraCallback",
    "AdaLoraConfig",
    "BottleneckConfig",
    "IA3Config",
    "Lean",
    "LoraConfig",
    "PrefixConfig",
    "attach",
    "combine",
    "detach",
    "export_lora",
    "load",
    "load_backbone",
    "load_tokenizer",
    "merge",
    "record",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'peftkit' has no attribute {name!r}")
    with quiet_bitsandbytes():
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if "peft" in sys.modules:  # otherwise `attach` or `load` does it
    importlib.import_module("peftkit.methods.method").all_methods()  # which PEFT then knows
