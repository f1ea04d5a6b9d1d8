"""The adapters at one place of a model: their parameters and their forward pass."""

import math
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from peftkit.anatomy import first_tensor, with_first_tensor
from peftkit.errors import ConfigError
from peftkit.methods.bottleneck.config import PLACEMENTS, BottleneckConfig
from peftkit.methods.bottleneck.hooks import AdapterInput, apply_to_features, find_closing_norm

NOT_LINEAR = (
    "a bottleneck adapter is not linear and cannot be merged; keep it beside the backbone, or "
    "train LoRA to merge"
)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """The adapters at one place: each adds its f to the output of their host."""

    adapter_layer_names = (
        "bottleneck_down",
        "bottleneck_up",
        "bottleneck_norm",
        "bottleneck_scale",
    )
    other_param_names = ("inputs", "configs")  # what PEFT's delete_adapter removes as well
    # PEFT's disable_input_dtype_casting sets it on every layer of an adapter.
    cast_input_dtype_enabled = True

    if TYPE_CHECKING:  # the attributes of PEFT's class have no types

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, width: int, *, channels_first: bool) -> None:
        super().__init__()
        self.width = width
        self.channels_first = channels_first
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_norm = nn.ModuleDict()
        self.bottleneck_scale = nn.ParameterDict()
        self.inputs: dict[str, AdapterInput] = {}
        self.configs: dict[str, BottleneckConfig] = {}
        self.merged_adapters: list[str] = []

    def add(
        self, name: str, config: BottleneckConfig, reads: AdapterInput, device: torch.device
    ) -> None:
        """Add an adapter with new float32 parameters: W_down [m, width], W_up [width, m]."""
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
        self.inputs[name], self.configs[name] = reads, config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, output: Any) -> Any:
        """Return the host's output with what the active adapters add to it."""
        if self.disable_adapters:
            return output
        names = [name for name in self.active_adapters if name in self.configs]
        if not names:
            return output
        u = first_tensor(output)  # [..., width] or [batch, width, ...]
        closing = find_closing_norm(u, [self.inputs[name] for name in names])
        total = self._branch(names[0], self.inputs[names[0]].read(u))  # the sum of the f(z)
        for name in names[1:]:
            total = total + self._branch(name, self.inputs[name].read(u))
        total = total.view_as(u)  # a mixture of experts may return its tokens in one row
        if closing is None:
            joined = u + total
        else:
            # A post-norm block ends in its norm, u = N(h). The adapters belong before it:
            # N(h + sum of f). The class's forward leaves out the hooks of the norm.
            joined = type(closing.norm).forward(closing.norm, closing.input + total)
        return with_first_tensor(output, joined)

    def _branch(self, name: str, z: Tensor) -> Tensor:
        """Return f(z) = s dropout(W_up sigma(W_down z + b_down) + b_up) of one adapter."""
        config = self.configs[name]
        activation, scale = PLACEMENTS[config.placement]
        sigma = ACT2FN[config.activation or activation]

        def branch(x: Tensor) -> Tensor:
            x = self._cast_input_dtype(x, self.bottleneck_down[name].weight.dtype)
            if name in self.bottleneck_norm:
                x = self.bottleneck_norm[name](x)
            inner = sigma(self.bottleneck_down[name](x))  # [..., m]
            y: Tensor = self.bottleneck_up[name](inner)  # [..., width]
            y = nn.functional.dropout(y, config.dropout, self.training)
            if config.scale == "learned":
                return torch.mul(y, self.bottleneck_scale[name])
            return y * (scale if config.scale is None else float(config.scale))

        added = apply_to_features(branch, z, self.width, channels_first=self.channels_first)
        return added.to(z.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: there is a nonlinearity between an adapter's two matrices."""
        raise ConfigError(NOT_LINEAR)


def _initialize(down: nn.Linear, up: nn.Linear, init: str) -> None:
    """Set the first weights of W_down [m, width] and W_up [width, m]; biases are zero."""
    for layer in (down, up):
        nn.init.zeros_(layer.bias)
        if init == "houlsby":
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        elif init == "bert":
            nn.init.normal_(layer.weight, std=0.02)
    if init == "zero_up":
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)  # f = 0, so the model is the backbone at start
