"""What every method resolves alike: the task, the head that is trained whole, and names that must exist."""

import copy
from collections.abc import Iterable
from typing import TypeVar

from peft import PeftConfig
from torch import nn

from peftkit.anatomy import task_head, task_type
from peftkit.errors import TargetError, nearest

Config = TypeVar("Config", bound=PeftConfig)


def resolved_copy(config: Config, model: nn.Module) -> Config:
    """Return a copy of a config with its task and, for classification tasks, the trained head filled in.

    Raises:
        TargetError: a name in ``modules_to_save`` matches no module.
    """
    resolved = copy.deepcopy(config)
    resolved.task_type = config.task_type or task_type(model)
    saved = getattr(config, "modules_to_save", None)
    check_names(saved or (), model)
    if saved is None and resolved.task_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        resolved.modules_to_save = task_head(model) or None
    return resolved


def check_names(names: Iterable[str], model: nn.Module) -> None:
    """Check that each name is the end of a module's name.

    Raises:
        TargetError: one is not; the sentence gives the nearest that is.
    """
    for name in names:
        matching(name, model)


def matching(name: str, model: nn.Module) -> list[str]:
    """Return the modules whose name is `name`, or ends in it.

    Raises:
        TargetError: there is none.
    """
    modules = [module for module, _ in model.named_modules()]
    found = [module for module in modules if module == name or module.endswith(f".{name}")]
    if not found:
        ends = {part for module in modules for part in (module, module.rpartition(".")[2])}
        raise TargetError(f"{name!r} matches no module of {type(model).__name__}{nearest(name, ends)}")
    return found
