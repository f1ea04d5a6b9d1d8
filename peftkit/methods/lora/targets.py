"""LoRA (arXiv:2106.09685): y = W x + (alpha / r) B A dropout(x), with W frozen. B starts at zero,
so y = W x until trained.
"""

from collections.abc import Iterable

from peft import AdaLoraConfig, LoraConfig
from torch import nn

from peftkit.anatomy import convolutions, is_convolutional, linear_layers
from peftkit.anatomy import left_alone as all_left_alone
from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.resolution import check_names, resolved_copy

# The inits of PEFT that write to the frozen weight, so that W + B A stays what W was.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def resolve(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Return a copy of `config` with the targets, the task type and the trained heads that suit
    `model`.

    Without ``target_modules`` (or with "all-linear"), every linear layer gets LoRA, except the
    output embedding and the task head, which is trained whole; and so do convolutions over single
    positions, which are linear layers by another name, and in a convolutional network all that have
    no groups.

    Raises:
        ConfigError: r, lora_alpha or lora_dropout is out of bounds.
        TargetError: a name in ``target_modules`` matches no module.
    """
    _check_bounds(config)
    resolved = resolved_copy(config, model)
    if config.target_modules in (None, "all-linear") and not config.target_parameters:
        resolved.target_modules = set(_shortest_names(_layers(config, model), model))
        if not resolved.target_modules:
            raise TargetError(
                f"{type(model).__name__} has no linear layer that {type(config).__name__} could adapt"
            )
    elif not isinstance(config.target_modules, str):
        check_names(config.target_modules or (), model)
    return resolved


def _layers(config: LoraConfig, model: nn.Module) -> list[str]:
    """Return the layers to adapt. AdaLoRA, whose triplets are those of a matrix, has no form for
    convolutions.
    """
    if isinstance(config, AdaLoraConfig):
        return linear_layers(model)
    return [*linear_layers(model), *convolutions(model, pointwise=not is_convolutional(model))]


def left_alone(config: LoraConfig, model: nn.Module) -> dict[str, list[str]]:
    """Return the layers and parameters of `model` that the default targets leave out, by reason,
    but for those named.
    """
    named = tuple(f".{name}" for name in config.target_parameters or ())
    found = {
        reason: [name for name in names if not f".{name}".endswith(named)]
        for reason, names in all_left_alone(model).items()
    }
    return {reason: names for reason, names in found.items() if names}


def changes_backbone(config: LoraConfig) -> bool:
    """Tell whether the config's initialisation writes to the frozen weights."""
    init = config.init_lora_weights
    return isinstance(init, str) and init.startswith(_MUTATING_INITS)


def _check_bounds(config: LoraConfig) -> None:
    problems = []
    if not is_whole(config.r) or config.r < 1:
        problems.append(f"r is {config.r!r}; it must be a whole number of at least 1")
    alpha = config.lora_alpha
    if not is_number(alpha):
        problems.append(f"lora_alpha is {alpha!r}; it must be a finite number")
    if not isinstance(config.lora_dropout, int | float) or not 0 <= config.lora_dropout < 1:
        problems.append(
            f"lora_dropout is {config.lora_dropout!r}; it must be at least 0 and less than 1"
        )
    if config.layer_replication:
        problems.append(
            "layer_replication builds layers anew, which detach could not undo; build such a backbone first"
        )
    if problems:
        raise ConfigError("LoraConfig: " + "; ".join(problems))


def _shortest_names(layers: list[str], model: nn.Module) -> Iterable[str]:
    """Return last parts of names where these mean the given layers and no other module, else whole
    names.
    """
    wanted = set(layers)
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in wanted}
    for name in layers:
        last = name.rpartition(".")[2]
        yield name if last in others or last.isdigit() else last
