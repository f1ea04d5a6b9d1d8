"""The adapters at one place of a model: their parameters and their forward pass."""

import math
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from peftkit.anatomy import first_tensor, with_first_tensor
from peftkit.errors import ConfigError
from peftkit.methods.bottleneck import hooks as taps
from peftkit.methods.bottleneck.config import PLACEMENTS, BottleneckConfig

NOT_LINEAR = "a bottleneck adapter is not linear and cannot be merged; keep it beside the backbone, or train LoRA to merge"


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
            start = torch.full((1,), PLACEMENTS[config.placement][1], device=device)
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
        activation, scale = PLACEMENTS[config.placement]
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
        raise ConfigError(NOT_LINEAR)


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
