"""The one place that changes what PEFT keeps to itself.

A method of ours becomes a member of PEFT's `PeftType`: PEFT lists its methods in an enum and
registers only these, so a new one needs a new member first. Enum members cannot be added through a
public call; `register` writes the three tables in which CPython looks them up, and then asks the
enum, so that a Python or PEFT in which this no longer works fails at import with a sentence, and
not later.

PEFT rewrites the targets of a config for mixture-of-experts models that transformers 4 built
otherwise: it takes the names of shared experts and of dense layers for those of the experts, adapts
these instead, and renames weights when it loads them. `targets_as_they_are` holds it back.
"""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import Tensor


def register(name: str, config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Make a method known to PEFT under `name` (upper case), with the parameter prefix that its
    tuner declares.

    Raises:
        ImportError: the enum refuses the member.
    """
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    if not (
        PeftType(name) is member and name in list(PeftType) and getattr(PeftType, name) is member
    ):
        raise ImportError(
            f"PEFT's list of methods does not take {name}; peftkit is written for peft 0.21"
        )
    register_peft_method(
        name=name.lower(), config_cls=config_class, model_cls=tuner_class, prefix=tuner_class.prefix
    )


@contextlib.contextmanager
def targets_as_they_are() -> Iterator[None]:
    """Let PEFT inject into just the modules that a config names, and load weights under just the
    names they have.
    """
    conversion = "peft.utils.transformers_weight_conversion"
    with (
        mock.patch(f"{conversion}.convert_peft_config_for_transformers"),
        mock.patch(f"{conversion}.convert_peft_adapter_state_dict_for_transformers", _as_they_are),
    ):
        yield


def _as_they_are(*, adapter_state_dict: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
    return adapter_state_dict


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence what PEFT warns of and no user can do anything about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning
        )
        warnings.filterwarnings(
            "ignore", message="Adapter name .* should not be contained in the prefix"
        )
        warnings.filterwarnings(
            "ignore", message=".*zero-sized lora_A / lora_B"
        )  # AdaLoRA may leave a layer no rank
        yield


@contextlib.contextmanager
def garbage_stays() -> Iterator[None]:
    """Hold the garbage collector back, which would spend half of the time on the many objects that
    an adapter is made of.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
