"""Bottleneck adapters: f(z) = s · dropout(W_up σ(W_down z + b_down) + b_up), at one of four places
in each block.

With u what a sublayer adds to the residual stream x, and N the frozen norm of a post-norm block:

| placement       | source                     | in a post-norm block         | in a pre-norm block         |
|-----------------|----------------------------|------------------------------|-----------------------------|
| houlsby         | arXiv:1902.00751, fig. 2   | N(x + u + f(u)), every u     | x + u + f(u), every u       |
| pfeiffer        | arXiv:2005.00052, sec. 2.2 | h = N(x + u), N(x + u + f(h))| h = x + u, h + f(h)         |
| parallel        | arXiv:2110.04366, eq. 7    | N(x + u + f(x))              | x + u + f(N(x))             |
| scaled_parallel | arXiv:2110.04366, sec. 4.6 | as parallel, with s = 4      | as parallel, with s = 4     |

houlsby follows every sublayer (attention, cross-attention, feed-forward), the others the
feed-forward layer. u is taken from the sublayer's last layer, before the sublayer's own dropout.
W_up starts at zero, so attaching changes nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from peftkit.anatomy import (
    first_tensor,
    is_convolution,
    is_convolutional,
    stream_norms,
    with_first_tensor,
)
from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError, TargetError, nearest
from peftkit.methods.bottleneck import hooks as taps
from peftkit.methods.bottleneck.sites import sites
from peftkit.methods.peft_registry import register
from peftkit.methods.resolution import resolved_copy

_PLACEMENTS = {
    "houlsby": ("gelu", 1.0),
    "pfeiffer": ("relu", 1.0),
    "parallel": ("relu", 1.0),
    "scaled_parallel": ("relu", 4.0),
}
_NOT_LINEAR = "a bottleneck adapter is not linear and cannot be merged; keep it beside the backbone, or train LoRA to merge"
_SITES = "_peftkit_sites"
_INITS = ("zero_up", "houlsby", "bert")


@dataclass
class BottleneckConfig(PeftConfig):
    """A bottleneck adapter in the blocks of a model.

    Args:
        placement: "houlsby", "pfeiffer", "parallel" or "scaled_parallel"; the formulas stand in
            this module's docstring.
        bottleneck_dim: Features m between W_down [m, d] and W_up [d, m], at least 1. None takes d /
            reduction_factor.
        reduction_factor: d / m, greater than 0. The papers use 16 for pfeiffer and 2 for parallel.
        activation: σ, by transformers' name; None takes the placement's own: gelu for houlsby, relu
            for the others.
        scale: s, a number, or "learned" for a trained one that starts at the placement's own (1,
            scaled_parallel: 4).
        dropout: Probability with which outputs of W_up are dropped, from 0 to less than 1.
        init_weights: "zero_up" (W_down as LoRA's A, W_up zero: exactly the backbone at start),
            "houlsby" (normal, cut at two of its 0.01 standard deviations) or "bert" (normal, 0.02);
            biases are zero.
        parallel_input: What parallel adapters read in a pre-norm block: "ffn", the input of the
            feed-forward layer N(x), as the paper's formula; or "residual", x itself, as its code
            and AdapterHub.
        norm_before: Put a trained LayerNorm in front of W_down.
        train_layer_norms: Train (copies of) the norms of the blocks as well, as Houlsby et al. do.
        layers_to_transform: Indices of the blocks that get adapters, in each stack; None is all.
        target_modules: Modules whose output gets the adapter, by the ends of their names; None is
            what the placement says.
        modules_to_save: Modules that are trained whole; None is the head of a classification task.

    Raises:
        ConfigError: values are out of bounds; all of them at once.
    """

    placement: str = "pfeiffer"
    bottleneck_dim: int | None = None
    reduction_factor: float = 16.0
    activation: str | None = None
    scale: float | str | None = None
    dropout: float = 0.0
    init_weights: str = "zero_up"
    parallel_input: str = "ffn"
    norm_before: bool = False
    train_layer_norms: bool = False
    layers_to_transform: list[int] | None = None
    target_modules: list[str] | set[str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        from peft import PeftType

        self.peft_type = PeftType("BOTTLENECK")
        problems = [*_not_allowed(self), *_out_of_bounds(self), *_of_wrong_type(self)]
        if problems:
            raise ConfigError("BottleneckConfig: " + "; ".join(problems))


def _not_allowed(config: BottleneckConfig) -> Iterator[str]:
    for name, allowed in (
        ("placement", tuple(_PLACEMENTS)),
        ("init_weights", _INITS),
        ("parallel_input", ("ffn", "residual")),
        ("activation", (None, *ACT2FN)),
    ):
        value = getattr(config, name)
        if value not in allowed:
            yield f"{name} is {value!r}{nearest(str(value), [str(one) for one in allowed])}"
    if config.activation in ACT2FN and any(True for _ in ACT2FN[config.activation].parameters()):
        yield f"activation is {config.activation!r}, which has weights of its own; choose one without"


def _out_of_bounds(config: BottleneckConfig) -> Iterator[str]:
    if config.bottleneck_dim is not None and (
        not is_whole(config.bottleneck_dim) or config.bottleneck_dim < 1
    ):
        yield f"bottleneck_dim is {config.bottleneck_dim!r}; it must be a whole number of at least 1"
    if not is_number(config.reduction_factor) or config.reduction_factor <= 0:
        yield f"reduction_factor is {config.reduction_factor!r}; it must be greater than 0"
    if not is_number(config.dropout) or not 0 <= config.dropout < 1:
        yield f"dropout is {config.dropout!r}; it must be at least 0 and less than 1"
    if config.scale not in (None, "learned") and (not is_number(config.scale) or config.scale == 0):
        yield f"scale is {config.scale!r}; it must be a finite number other than 0, or 'learned'"


def _of_wrong_type(config: BottleneckConfig) -> Iterator[str]:
    for name in ("norm_before", "train_layer_norms"):
        if not isinstance(getattr(config, name), bool):
            yield f"{name} is {getattr(config, name)!r}; it must be true or false"
    for name, kind in (
        ("layers_to_transform", int),
        ("target_modules", str),
        ("modules_to_save", str),
    ):
        value = getattr(config, name)
        if value is not None and (
            isinstance(value, str | int) or not all(isinstance(one, kind) for one in value)
        ):
            yield f"{name} is {value!r}; it must be a list of {'numbers' if kind is int else 'names'}"


def resolve(config: BottleneckConfig, model: nn.Module) -> BottleneckConfig:
    """Return a copy of `config` with the task type, the trained head and the trained norms that
    suit `model`.

    Raises:
        TargetError: the model has no place for the adapters, or a name of the config matches
            nothing.
    """
    resolved = resolved_copy(config, model)
    places = sites(resolved, model)
    for name in resolved.modules_to_save or ():
        inside = [site.host for site in places if f".{site.host}.".find(f".{name}.") >= 0]
        if inside:
            raise TargetError(
                f"modules_to_save trains {name!r} whole, and {inside[0]!r} in it would get an adapter too"
            )
    setattr(
        resolved, _SITES, places
    )  # no field of the config, so not in its file: every model has its own
    if config.train_layer_norms:
        norms = {
            f"{site.block}.{name}"
            for site in places
            for name, part in model.get_submodule(site.block).named_modules()
            if any(
                part is norm for norm in stream_norms(model.get_submodule(site.block), site.width)
            )
        }
        resolved.modules_to_save = [*(resolved.modules_to_save or ()), *sorted(norms)]
    return resolved


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """The adapters at one place: each adds its f to what the host has given."""

    adapter_layer_names = (
        "bottleneck_down",
        "bottleneck_up",
        "bottleneck_norm",
        "bottleneck_scale",
    )
    cast_input_dtype_enabled = (
        True  # PEFT's disable_input_dtype_casting sets it on every layer of an adapter
    )

    if TYPE_CHECKING:  # what PEFT's class brings has no types

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, width: int, *, channels_first: bool) -> None:
        super().__init__()
        self.width = width
        self.channels_first = channels_first
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_norm = nn.ModuleDict()
        self.bottleneck_scale = nn.ParameterDict()
        self.taps: dict[str, taps.Tap] = {}
        self.configs: dict[str, BottleneckConfig] = {}
        self.merged_adapters: list[str] = []

    def add(
        self, name: str, config: BottleneckConfig, tap: "taps.Tap", device: torch.device
    ) -> None:
        """Make the parameters of an adapter: float32, W_down [m, width], W_up [width, m]."""
        middle = config.bottleneck_dim or max(1, round(self.width / config.reduction_factor))
        down = nn.Linear(self.width, middle, device=device, dtype=torch.float32)
        up = nn.Linear(middle, self.width, device=device, dtype=torch.float32)
        _initialize(down, up, config.init_weights)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        if config.norm_before:
            self.bottleneck_norm[name] = nn.LayerNorm(
                self.width, device=device, dtype=torch.float32
            )
        if config.scale == "learned":
            start = torch.full((1,), _PLACEMENTS[config.placement][1], device=device)
            self.bottleneck_scale[name] = nn.Parameter(start)
        self.taps[name], self.configs[name] = tap, config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, output: Any) -> Any:
        """Return the host's output with the active adapters joined to it."""
        names = (
            []
            if self.disable_adapters
            else [name for name in self.active_adapters if name in self.configs]
        )
        if names:
            u = first_tensor(output)
            closing = taps.closing_norm(u, [self.taps[name] for name in names])
            total = reduce(add, (self._branch(name, self.taps[name].read(u)) for name in names))
            total = total.view_as(u)  # a mixture of experts may give its tokens in one row
            # A post-norm block ends in its norm: there the adapters' output is added before the
            # norm.
            joined = (
                type(closing.norm).forward(closing.norm, closing.read + total)
                if closing
                else u + total
            )
            output = with_first_tensor(output, joined)
        return output

    def _branch(self, name: str, z: Tensor) -> Tensor:
        config = self.configs[name]
        activation, scale = _PLACEMENTS[config.placement]
        sigma = ACT2FN[config.activation or activation]

        def branch(x: Tensor) -> Tensor:
            x = self._cast_input_dtype(x, self.bottleneck_down[name].weight.dtype)
            if name in self.bottleneck_norm:
                x = self.bottleneck_norm[name](x)
            y: Tensor = self.bottleneck_up[name](sigma(self.bottleneck_down[name](x)))
            y = nn.functional.dropout(y, config.dropout, self.training)
            if config.scale == "learned":
                return torch.mul(y, self.bottleneck_scale[name])
            return y * (scale if config.scale is None else float(config.scale))

        joined = taps.on_features(branch, z, self.width, channels_first=self.channels_first)
        return joined.to(z.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: between an adapter's two matrices stands a nonlinearity."""
        raise ConfigError(_NOT_LINEAR)


def _initialize(down: nn.Linear, up: nn.Linear, init: str) -> None:
    for layer in (down, up):
        nn.init.zeros_(layer.bias)
        if init == "houlsby":
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        elif init == "bert":
            nn.init.normal_(layer.weight, std=0.02)
    if init == "zero_up":
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)


class BottleneckModel(BaseTuner):
    """PEFT's tuner for `BottleneckConfig`."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(
        self, peft_config: BottleneckConfig, model_config: dict[str, Any]
    ) -> BottleneckConfig:
        found = getattr(peft_config, _SITES, None) or sites(peft_config, self.model)
        self._sites = {site.host: site for site in found}
        peft_config.target_modules = list(self._sites)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: BottleneckConfig, key: str) -> bool:
        names = peft_config.target_modules or ()
        return key in names or any(key.endswith(f".{name}") for name in names)

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = self._sites[current_key]
        if isinstance(target, nn.Sequential | nn.ModuleList):
            raise TargetError(
                f"{current_key!r} is a list of layers and has no output that an adapter could change"
            )
        block = self.model.get_submodule(site.block)
        tap = taps.open_tap(
            block,
            source=self.model.get_submodule(site.source) if site.source else None,
            norms=stream_norms(block, site.width),
            closes_block=site.closes_block,
            reads_residual=peft_config.parallel_input == "residual",
        )
        layer = dict(target.named_children()).get(taps.CHILD)
        if not isinstance(layer, BottleneckLayer):
            layer = BottleneckLayer(
                site.width, channels_first=is_convolution(target) or is_convolutional(self.model)
            )
            layer._active_adapter = self.active_adapter
            taps.open_host(target, layer)
        device = next((parameter.device for parameter in target.parameters()), torch.device("cpu"))
        layer.add(adapter_name, peft_config, tap, device)

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        raise ConfigError(
            _NOT_LINEAR if merge else "peftkit.detach(model) takes a bottleneck adapter off"
        )


register("BOTTLENECK", BottleneckConfig, BottleneckModel)
