"""Which layers get LoRA (arXiv:2106.09685): y = W x + (alpha / r) B A dropout(x).

W is frozen and B starts at zero, so y = W x until trained.
"""

from peft import LoraConfig
from torch import nn

from peftkit.anatomy import convolutions as convolution_layers
from peftkit.anatomy import is_convolutional, linear_layers
from peftkit.anatomy import left_alone as all_left_alone
from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.resolution import check_names, resolved_copy, shortest_names

# The inits of PEFT that write to the frozen weight, so that W + B A stays what W was.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def resolve(config: LoraConfig, model: nn.Module, *, convolutions: bool = True) -> LoraConfig:
    """Return a copy of `config` with the targets, the task type and the trained heads for `model`.

    Without ``target_modules``, or with "all-linear", every linear layer gets LoRA. The output
    embedding does not, nor does the task head, which is trained whole. Convolutions over single
    positions are linear layers by another name and get it too. So do all convolutions without
    groups in a network that is made of convolutions.

    Args:
        config: A ``LoraConfig`` or one of its subclasses.
        model: The backbone.
        convolutions: Whether the method has a form for convolutions.

    Raises:
        ConfigError: r, lora_alpha or lora_dropout is out of bounds.
        TargetError: a name in ``target_modules`` matches no module.
    """
    _check_bounds(config)
    resolved = resolved_copy(config, model)
    if config.target_modules in (None, "all-linear") and not config.target_parameters:
        layers = linear_layers(model)
        if convolutions:
            layers = [*layers, *convolution_layers(model, pointwise=not is_convolutional(model))]
        if not layers:
            what = f"{type(model).__name__} has no linear layer"
            raise TargetError(f"{what} that {type(config).__name__} could adapt")
        resolved.target_modules = shortest_names(layers, model)
    elif not isinstance(config.target_modules, str):
        check_names(config.target_modules or (), model)
    return resolved


def left_alone(config: LoraConfig, model: nn.Module) -> dict[str, list[str]]:
    """Return the layers and parameters that the default targets leave out, by reason.

    Those in the config's ``target_parameters`` are adapted, and so not among them.
    """
    targeted = tuple(f".{name}" for name in config.target_parameters or ())
    found = {}
    for reason, names in all_left_alone(model).items():
        left = [name for name in names if not f".{name}".endswith(targeted)]
        if left:
            found[reason] = left
    return found


def changes_backbone(config: LoraConfig) -> bool:
    """Whether the config's initialisation writes to the frozen weights."""
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
            "layer_replication builds layers anew, which detach could not undo; build such a "
            "backbone first"
        )
    if problems:
        raise ConfigError("LoraConfig: " + "; ".join(problems))
