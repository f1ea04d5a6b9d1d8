"""The one place that changes what PEFT keeps to itself.

A method of ours becomes a member of PEFT's `PeftType`: PEFT lists its methods in an enum and
registers only these, so a new one needs a new member first. Enum members cannot be added through a
public call; `register` writes the three tables in which CPython looks them up, and then asks the
enum, so that a Python or PEFT in which this no longer works fails at import with a sentence, and
not later.

PEFT rewrites the targets of a config for mixture-of-experts models that transformers 4 built
otherwise: it takes the names of shared experts and of dense layers for those of the experts, adapts
these instead, and renames weights when it loads them. `injecting` holds it back.

Written for peft 0.21.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method, transformers_weight_conversion
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
def injecting(peft_type: str, tuner_class: type[BaseTuner]) -> Iterator[None]:
    """A context in which PEFT injects a method with `tuner_class`, into the targets as they are.

    Outside of it, PEFT builds the method from its own class for everyone else.
    """
    member = PeftType(peft_type)
    own_class = PEFT_TYPE_TO_TUNER_MAPPING[member]
    PEFT_TYPE_TO_TUNER_MAPPING[member] = tuner_class
    try:
        with _targets_as_they_are():
            yield
    finally:
        PEFT_TYPE_TO_TUNER_MAPPING[member] = own_class


@contextlib.contextmanager
def _targets_as_they_are() -> Iterator[None]:
    """Let PEFT inject into just the modules that a config names, and load just the given weights.

    A PEFT without these two functions (they came with 0.19) rewrites nothing.
    """
    replacements: dict[str, Callable[..., Any]] = {
        "convert_peft_config_for_transformers": _leave_config,
        "convert_peft_adapter_state_dict_for_transformers": _leave_weights,
    }
    own = {
        name: vars(transformers_weight_conversion)[name]
        for name in replacements
        if name in vars(transformers_weight_conversion)
    }
    vars(transformers_weight_conversion).update({name: replacements[name] for name in own})
    try:
        yield
    finally:
        vars(transformers_weight_conversion).update(own)


def _leave_config(*args: Any, **kwargs: Any) -> None:
    """Stand for a conversion in place that does nothing."""


def _leave_weights(*, adapter_state_dict: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
    return adapter_state_dict


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """Return the weights of the adapter `name`, under the keys that they have in its file."""
    with quiet_peft():
        tensors: dict[str, Tensor] = get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=False
        )
    return tensors


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
        # AdaLoRA may leave a layer no rank.
        warnings.filterwarnings("ignore", message=".*zero-sized lora_A / lora_B")
        # PEFT looks for LoRA's patterns, whose keys are modules; those of AdaLoRA are parameters.
        warnings.filterwarnings(
            "ignore", message="The following rank_pattern keys", category=RuntimeWarning
        )
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
