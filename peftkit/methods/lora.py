"""LoRA (arXiv:2106.09685): y = W x + (alpha / r) B A dropout(x), with W frozen. B starts at zero, so y = W x until trained."""

import copy
import math
from collections.abc import Iterable

from peft import LoraConfig
from torch import nn

from peftkit.anatomy import linear_layers, task_head, task_type
from peftkit.errors import ConfigError, TargetError, nearest

# The inits of PEFT that write to the frozen weight, so that W + B A stays what W was.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def resolve(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Return a copy of `config` with the targets, the task type and the trained heads that suit `model`.

    Without ``target_modules`` (or with "all-linear"), every linear layer gets LoRA, except the output embedding and the
    task head, which is trained whole.

    Raises:
        ConfigError: r, lora_alpha or lora_dropout is out of bounds.
        TargetError: a name in ``target_modules`` matches no module.
    """
    _check_bounds(config)
    resolved = copy.deepcopy(config)
    resolved.task_type = config.task_type or task_type(model)
    if config.target_modules in (None, "all-linear") and not config.target_parameters:
        resolved.target_modules = set(_shortest_names(linear_layers(model), model))
        if not resolved.target_modules:
            raise TargetError(f"{type(model).__name__} has no linear layer that LoRA could adapt")
    elif not isinstance(config.target_modules, str):
        _check_names(config.target_modules or (), model)
    _check_names(config.modules_to_save or (), model)
    if resolved.modules_to_save is None and resolved.task_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        resolved.modules_to_save = task_head(model) or None
    return resolved


def changes_backbone(config: LoraConfig) -> bool:
    """Tell whether the config's initialisation writes to the frozen weights."""
    init = config.init_lora_weights
    return isinstance(init, str) and init.startswith(_MUTATING_INITS)


def _check_bounds(config: LoraConfig) -> None:
    problems = []
    if isinstance(config.r, bool) or not isinstance(config.r, int) or config.r < 1:
        problems.append(f"r is {config.r!r}; it must be a whole number of at least 1")
    alpha = config.lora_alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        problems.append(f"lora_alpha is {alpha!r}; it must be a finite number")
    if not isinstance(config.lora_dropout, int | float) or not 0 <= config.lora_dropout < 1:
        problems.append(f"lora_dropout is {config.lora_dropout!r}; it must be at least 0 and less than 1")
    if problems:
        raise ConfigError("LoraConfig: " + "; ".join(problems))


def _check_names(names: Iterable[str], model: nn.Module) -> None:
    modules = [name for name, _ in model.named_modules()]
    suffixes = {part for name in modules for part in (name, name.rpartition(".")[2])}
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise TargetError(f"{name!r} matches no module of {type(model).__name__}{nearest(name, suffixes)}")


def _shortest_names(layers: list[str], model: nn.Module) -> Iterable[str]:
    """Return last parts of names where these mean the given layers and no other module, else whole names."""
    wanted = set(layers)
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in wanted}
    for name in layers:
        last = name.rpartition(".")[2]
        yield name if last in others or last.isdigit() else last
