"""What `peftkit inspect` prints: a model's anatomy as a folded tree, and what each method would
touch. Needs no weights.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

import peftkit
from peftkit.anatomy import (
    Attention,
    Block,
    Stack,
    Sublayer,
    attentions,
    fused_experts,
    is_linear,
    left_alone,
    output_modules,
    stacks,
    task_head,
)
from peftkit.backbones.loading import AUTO_CLASSES, Head
from peftkit.backbones.sources import resolve_source
from peftkit.config.shipped import PACKAGE_PREFIX, package_file
from peftkit.errors import BackboneError, PeftkitError
from peftkit.methods.method import variants


def empty_model(source: str, task: Head | None = None) -> PreTrainedModel:
    """Build a model from its config alone, with parameters that have shapes and no values.

    Args:
        source: What `load_backbone` takes, or a config.json.
        task: The head to build; None is the class that the config names, or a causal language
            model.

    Raises:
        BackboneError: there is no config, or transformers has no such model.
    """
    try:
        config = AutoConfig.from_pretrained(_config_location(source))
        with torch.device("meta"), _quiet():
            model: PreTrainedModel = _model_class(config, task)(config)
    except (OSError, ValueError, KeyError) as problem:
        raise BackboneError(f"cannot build {source}: {problem}") from problem
    return model.eval()


def _config_location(source: str) -> str:
    """Return what transformers reads a config from: a config.json itself, without its weights."""
    if Path(source).suffix != ".json":
        return resolve_source(source)
    if source.startswith(PACKAGE_PREFIX):
        return str(package_file(source, BackboneError))
    return source


def _model_class(config: PretrainedConfig, task: Head | None) -> type[PreTrainedModel]:
    named = next((getattr(transformers, name, None) for name in config.architectures or ()), None)
    if task is None and named is not None:
        found: type[PreTrainedModel] = named
        return found
    auto_class = getattr(transformers, AUTO_CLASSES[task or "causal-lm"])
    if type(config) not in auto_class._model_mapping:
        raise ValueError(
            f"transformers has no {task or 'causal-lm'} model of type {config.model_type}; name "
            "another task"
        )
    chosen: type[PreTrainedModel] = auto_class._model_mapping[type(config)]
    return chosen


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers says of configs; it concerns running a model, not looking at it."""
    root = logging.getLogger("transformers")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def describe(model: PreTrainedModel) -> str:
    """Return the whole text: the tree, what stays 16-bit, and what each method would touch."""
    total = _count(model)
    found = stacks(model)
    scores = attentions(model)
    lines = [f"{type(model).__name__}, {_short(total)} parameters"]
    for stack in found:
        lines += _stack_lines(stack, model, scores)
    lines += ["", *_ends(model)]
    for reason, names in left_alone(model).items():
        lines.append(f"LoRA leaves alone   {_folded_names(names)}: {reason}")
    return "\n".join([*lines, "", *_method_lines(model, total)])


def _stack_lines(stack: Stack, model: nn.Module, scores: list[Attention]) -> list[str]:
    """Return a stack's blocks, those that are alike folded into one."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, block in enumerate(stack.blocks):
        alike.setdefault(tuple(_block_lines(block, model, scores)), []).append(number)
    kind = type(model.get_submodule(stack.blocks[0].name)).__name__
    lines = ["", f"{stack.name}  {len(stack.blocks)} x {kind}, {stack.blocks[0].width} wide"]
    for last, (described, numbers) in zip(_marks(len(alike)), alike.items(), strict=True):
        head = "every block" if len(alike) == 1 else f"blocks {_ranges(numbers)}"
        lines.append(f"{'└─' if last else '├─'} {head}")
        for final, line in zip(_marks(len(described)), described, strict=True):
            lines.append(f"{'   ' if last else '│  '}{'└─' if final else '├─'} {line}")
    return lines


def _marks(length: int) -> list[bool]:
    return [number == length - 1 for number in range(length)]


def _block_lines(block: Block, model: nn.Module, scores: list[Attention]) -> list[str]:
    return [_sublayer_line(part, block, model, scores) for part in block.sublayers] or [
        "one branch of convolutions"
    ]


def _sublayer_line(part: Sublayer, block: Block, model: nn.Module, scores: list[Attention]) -> str:
    near = f"{block.name}."
    kind = "state space or other mixer" if part.kind == "mixer" else part.kind
    about = [f"{part.source.removeprefix(near)}  {kind}"]
    for site in scores:
        if f"{site.name}.".startswith(f"{part.source}."):
            about.append(_heads(site))
    about += _experts(model.get_submodule(part.source))
    if part.writer != part.source:
        about.append(f"writes through {part.writer.removeprefix(near)}")
    return ", ".join(about)


def _heads(site: Attention) -> str:
    grouped = f", {site.groups} key-value heads" if site.groups != site.heads else ""
    widths = f"{site.key_width}"
    if site.value_width != site.key_width:
        widths += f" and {site.value_width}"
    return f"{site.heads} heads{grouped} of {widths}"


def _experts(sublayer: nn.Module) -> list[str]:
    """Return what there is to say of a mixture of experts: their number, and the router."""
    about = []
    fused = fused_experts(sublayer)
    if fused:
        about.append(f"{len(sublayer.get_parameter(fused[0]))} experts, fused")
    routers = []
    for name, part in sublayer.named_modules():
        if name.endswith("experts") and isinstance(part, nn.ModuleList) and not about:
            about.append(f"{len(part)} experts")
        if "router" in type(part).__name__.lower():
            routers.append(name)
    if routers:
        about.append(f"router {routers[0]}")
    return about


def _ends(model: PreTrainedModel) -> list[str]:
    """Return the lines about the output embedding, the task's head and what stays in 16 bits."""
    names = {id(module): name for name, module in model.named_modules()}
    outputs = output_modules(model)
    lines = []
    is_tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    for head in outputs:
        tied = ", tied to the input embedding" if is_tied else ""
        lines.append(f"output embedding    {names[id(head)]}{tied}")
    heads = task_head(model)
    if heads:
        lines.append(
            f"task head           {', '.join(heads)}: trained whole and saved with an adapter"
        )
    output_ids = {id(module) for module in outputs}
    rest = _count(model)
    for module in model.modules():
        if is_linear(module) and id(module) not in output_ids:
            rest -= _count(module)
    lines.append(
        f"stays 16-bit        {_short(rest)} parameters when quantised: all but the inner linear "
        "layers"
    )
    return lines


def _method_lines(model: PreTrainedModel, total: int) -> list[str]:
    """Return what each method would do, which is found by doing it and undoing it."""
    rows = []
    for variant in variants().values():
        name, config = variant.label, variant.shown()
        try:
            with torch.device("meta"):  # no time for values that nobody sees
                adapted = peftkit.attach(model, config, lean=False)
        except PeftkitError as problem:
            rows.append((name, "-", str(problem)))
            continue
        about = peftkit.record(adapted)["attach"]
        trained = sum(
            parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
        )
        share = f"{_short(trained)} ({100 * trained / total:.2f} %)"
        rows.append(
            (name, share, f"{about['adapted_layers']} places: {_folded_names(about['targets'])}")
        )
        peftkit.detach(adapted)
    width, middle = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    return [f"{'method':<{width}}  {'trained':<{middle}}  where"] + [
        f"{name:<{width}}  {share:<{middle}}  {where}" for name, share, where in rows
    ]


def _folded_names(names: str | list[str]) -> str:
    """Return names with the numbers of layers left out, each once."""
    if isinstance(names, str):
        return names
    folded = [
        ".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names
    ]
    return ", ".join(dict.fromkeys(folded))


def _ranges(numbers: list[int]) -> str:
    """Return [0, 1, 2, 5] as "0-2, 5"."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ends)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _short(count: float) -> str:
    for unit in ("", " k", " M", " G"):
        if count < 1000 or unit == " G":
            return f"{count:.3g}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    raise AssertionError
