"""What all methods resolve in the same way: task, trained head, and names of modules."""

import copy
from collections.abc import Iterable
from typing import TypeVar

from peft import PeftConfig
from torch import nn

from peftkit.anatomy import Block, stacks, task_head, task_type
from peftkit.errors import TargetError, nearest
from peftkit.recording import record

Config = TypeVar("Config", bound=PeftConfig)


def resolved_copy(config: Config, model: nn.Module) -> Config:
    """Return a copy of a config with its task type and, for classification, its trained head.

    Raises:
        TargetError: a name in ``modules_to_save`` matches no module.
    """
    resolved = copy.deepcopy(config)
    resolved.task_type = config.task_type or task_type(model)
    saved = getattr(config, "modules_to_save", None)
    check_names(saved or (), model)
    if saved is None and resolved.task_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        resolved.modules_to_save = [*task_head(model), *_new_in_body(model)] or None
    return resolved


def _new_in_body(model: nn.Module) -> list[str]:
    """Return the modules outside the head whose weights the checkpoint did not have.

    One is the pooler of a BERT that was saved without it. Such modules start with random weights,
    so they must be trained and saved like the head.
    """
    entry = record(model).get("load_backbone", {})
    heads = tuple(f"{name}." for name in task_head(model))
    names = [] if entry.get("weights") == "random" else entry.get("new", [])
    return sorted({name.rpartition(".")[0] for name in names if not name.startswith(heads)})


def check_names(names: Iterable[str], model: nn.Module) -> None:
    """Check that each name is the end of a module's name.

    Raises:
        TargetError: one is not; the message names the nearest that is.
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
        known = {*modules, *(module.rpartition(".")[2] for module in modules)}
        raise TargetError(
            f"{name!r} matches no module of {type(model).__name__}{nearest(name, known)}"
        )
    return found


def shortest_names(layers: Iterable[str], model: nn.Module) -> set[str]:
    """Return names by which PEFT finds exactly these layers.

    That is the last part of a name where no other module has the same one, else the whole name.
    """
    wanted = set(layers)
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in wanted}
    found = set()
    for name in wanted:
        last = name.rpartition(".")[2]
        is_ambiguous = last in others or last.isdigit()
        found.add(name if is_ambiguous else last)
    return found


def numbered_blocks(numbers: Iterable[int] | None, model: nn.Module) -> list[Block]:
    """Return the blocks with these numbers in each of the model's stacks; None is all of them.

    Raises:
        TargetError: no stack has a block of one of the numbers.
    """
    all_blocks = [stack.blocks for stack in stacks(model)]
    deepest = max(map(len, all_blocks), default=0)
    for number in numbers or ():
        if not 0 <= number < deepest:
            what = f"{type(model).__name__} has layers 0 to {deepest - 1}"
            raise TargetError(f"layers_to_transform names layer {number}, but {what}")
    wanted = None if numbers is None else set(numbers)
    chosen: list[Block] = []
    for blocks in all_blocks:
        for number, block in enumerate(blocks):
            if wanted is None or number in wanted:
                chosen.append(block)
    return chosen
