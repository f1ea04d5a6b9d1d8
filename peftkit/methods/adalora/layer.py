"""The AdaLoRA layer (arXiv:2303.10512): y = W x + s P Λ Q dropout(x), with W frozen (Eq. 3).

A penalty keeps P and Q near orthogonal. A column of P, a row of Q and a singular value in Λ are a
triplet; there are r, and `allocation` decides which of them stay. In PEFT's names, which the files
use: lora_A = Q (r, in), lora_E = diag Λ (r, 1), lora_B = P (out, r). Λ starts at zero, so y = W x
until trained. The scale is PEFT's, s = lora_alpha / (init_r + 1e-5). It does not change when
triplets leave, so PEFT reads our files and we read PEFT's.

Written for peft 0.21: the layer and the model are subclasses of PEFT's. They replace PEFT's classes
only while `attach` injects an adapter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraLayer, SVDLinear
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftkit.backbones.quantization import quantization_of
from peftkit.errors import ConfigError
from peftkit.methods.lora.layer import adapted, update_of
from peftkit.methods.method import Arithmetic

TRIPLET_DIMENSION = {"lora_A": 0, "lora_E": 0, "lora_B": 1}
"""The dimension that runs over the triplets: 0 where each is a row, 1 where it is a column."""


class AdaLoraLinear(SVDLinear):
    """Any linear layer with AdaLoRA beside it.

    The layer is called; its weight, quantised or not, is never touched.
    """

    # What PEFT's delete_adapter removes beside the parameters.
    other_param_names = (*AdaLoraLayer.other_param_names, "config")
    arithmetic: Arithmetic = "lean"
    rounds_update = False

    def __init__(
        self, base_layer: nn.Module, name: str, adapter_name: str, config: AdaLoraConfig
    ) -> None:
        nn.Module.__init__(self)
        AdaLoraLayer.__init__(self, base_layer)
        self.name = name
        self.fan_in_fan_out = isinstance(base_layer, Conv1D)
        self.config: dict[str, AdaLoraConfig] = {}
        self._active_adapter = adapter_name
        self.add_adapter(adapter_name, config)

    def add_adapter(self, adapter_name: str, config: AdaLoraConfig) -> None:
        """Add an adapter of init_r triplets.

        Where the config's ``rank_pattern`` has an entry for this layer, it has only the triplets
        that are kept there, perhaps none.
        """
        kept = (config.rank_pattern or {}).get(f"{self.name}.lora_E", [True] * config.init_r)
        r = sum(bool(each) for each in kept)
        self.r[adapter_name], self.config[adapter_name] = r, config
        self.lora_alpha[adapter_name] = self.scaling[adapter_name] = config.lora_alpha
        self.lora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        )
        values = torch.zeros(r, 1) if config.init_lora_weights else torch.randn(r, 1)
        self.lora_A[adapter_name] = nn.Parameter(torch.randn(r, self.in_features) * 0.02)
        self.lora_E[adapter_name] = nn.Parameter(values)
        self.lora_B[adapter_name] = nn.Parameter(torch.randn(self.out_features, r) * 0.02)
        self.ranknum[adapter_name] = nn.Parameter(
            torch.tensor([float(config.init_r)]), requires_grad=False
        )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Return LoRA's factors, A = Q (r, in) and B = s P Λ (out, r): the update is B A x."""
        scale = self.scaling[adapter] / (self.config[adapter].init_r + 1e-5)
        b = self.lora_B[adapter] * (self.lora_E[adapter].T * scale)  # (out, r) x (1, r)
        return self.lora_A[adapter], b

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the update in the weight's shape: (out, in), or (in, out) for ``Conv1D``."""
        a, b = self.factors(adapter)
        delta = b @ a  # (out, in)
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge into a float weight in place, as PEFT does.

        Raises:
            ConfigError: the weight is quantised.
        """
        kind = quantization_of(self.get_base_layer())
        if kind is not None:
            raise ConfigError(
                f"an update is lost in a weight of {kind}; peftkit.merge(model) merges into 16 bits"
            )
        super().merge(safe_merge, adapter_names)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + s P Λ Q x in the dtype of W x. x: (..., in); result: (..., out)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else self.active_adapters
        factors = {adapter: self.factors(adapter) for adapter in active if adapter in self.lora_A}
        if self.arithmetic == "lean" and not (args or kwargs):
            begun = [update_of(self, name, x, a, b) for name, (a, b) in factors.items()]
            return adapted(self.base_layer, x, begun)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        updates = []
        for name, (a, b) in factors.items():
            inner = F.linear(self._drop(x, name), a)  # (..., r)
            updates.append(F.linear(inner, b))  # (..., out)
        for update in updates:
            result = result + update
        return result.to(dtype)

    def _drop(self, x: Tensor, adapter: str) -> Tensor:
        """Return dropout(x) in the dtype of the adapter."""
        x = self._cast_input_dtype(x, self.lora_A[adapter].dtype)
        dropped: Tensor = self.lora_dropout[adapter](x)
        return dropped

    def resize(self, shapes: Mapping[str, Sequence[int]], prefix: str) -> None:
        """Give the adapters the ranks of weights that are still to be loaded.

        Args:
            shapes: The shapes of these weights, by name.
            prefix: What their names begin with for this layer.
        """
        for adapter, rank in self.r.items():
            wanted = shapes.get(f"{prefix}lora_A.{adapter}", (rank,))[0]
            if wanted == rank:
                continue
            for key, dim in TRIPLET_DIMENSION.items():
                parameter = getattr(self, key)[adapter]
                shape = list(parameter.shape)
                shape[dim] = wanted
                replace_data(parameter, parameter.data.new_zeros(shape))
            self.note_rank(adapter, wanted)

    def note_rank(self, adapter: str, rank: int) -> None:
        """Write a new rank into the config, where PEFT reads it.

        There it is a list of init_r booleans, as many of them True as the rank.
        """
        self.r[adapter] = rank
        config = self.config[adapter]
        own = f"{self.name}.lora_E"
        pattern = dict(config.rank_pattern or {})
        pattern.pop(own, None)
        if rank != config.init_r:
            pattern[own] = [number < rank for number in range(config.init_r)]
        config.rank_pattern = pattern or None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        self.resize({name: value.shape for name, value in state_dict.items()}, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the adapter and leave it float32; PEFT would round it to the base layer's dtype."""
        target = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        for key in (*TRIPLET_DIMENSION, "ranknum"):
            for name, parameter in getattr(self, key).items():
                if name == adapter_name and target is not None and not parameter.is_meta:
                    parameter.data = parameter.data.to(target)


def replace_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a float32 parameter data of another shape.

    Optimizers and modules keep the same parameter.
    """
    parameter.grad = None
    # While a loss is alive, autograd remembers the parameter's shape and refuses another one. Data
    # of another dtype make it forget.
    parameter.data = data.to(torch.bfloat16)
    parameter.data = data


def adapted_layers(model: nn.Module, adapter: str) -> list[AdaLoraLinear]:
    """Return the layers of `model` that carry an AdaLoRA adapter of that name."""
    found = []
    for module in model.modules():
        if isinstance(module, AdaLoraLinear) and adapter in module.lora_A:
            found.append(module)
    return found


def ranks(model: nn.Module, adapter: str = "default") -> dict[str, int]:
    """Return how many triplets each adapted layer has, by the layer's name in the backbone."""
    return {layer.name: layer.r[adapter] for layer in adapted_layers(model, adapter)}


def fit_ranks(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give each AdaLoRA layer of `model` the rank of the weights that will be loaded into it.

    Args:
        model: The adapted model.
        shapes: The shapes of these weights, by name.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, AdaLoraLinear):
            layer.resize(shapes, f"{name}.")
