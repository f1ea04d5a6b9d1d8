"""AdaLoRA (arXiv:2303.10512): y = W x + s P Λ Q dropout(x), with W frozen and P, Q kept near
orthogonal (Eq. 3).

Each of the r columns of P, rows of Q and singular values in Λ is a triplet; `allocation` decides
which of them stay. In PEFT's names, which the files have: lora_A = Q (r, in), lora_E = diag Λ (r,
1), lora_B = P (out, r). Λ starts at zero, so y = W x until trained. PEFT's scale, s = lora_alpha /
(init_r + 1e-5), does not change when triplets leave, so that files interchange.

This stands on peft 0.21: layer and model are subclasses of PEFT's, put in their place while
`attach` injects, and nowhere else.
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

TRIPLET_DIMENSION = {
    "lora_A": 0,
    "lora_E": 0,
    "lora_B": 1,
}  # where a triplet is a row, and where a column


class AdaLoraLinear(SVDLinear):
    """Any linear layer with AdaLoRA beside it. The layer is called; its weight, quantised or not,
    is never touched.
    """

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
        """Add an adapter of init_r triplets, or of as many as the config's ``rank_pattern`` has
        kept here, perhaps none.
        """
        kept = (config.rank_pattern or {}).get(f"{self.name}.lora_E", [True] * config.init_r)
        r = sum(map(bool, kept))
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
        """Return A (r, in) and B (out, r) such that the update is x -> B A x: plain LoRA's factors,
        with the scale in B.
        """
        scale = self.scaling[adapter] / (self.config[adapter].init_r + 1e-5)
        return self.lora_A[adapter], self.lora_B[adapter] * (self.lora_E[adapter].T * scale)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the update of the weight, in the shape of the weight: (out, in), or (in, out) for
        ``Conv1D``.
        """
        lora_a, lora_b = self.factors(adapter)
        delta = lora_b @ lora_a
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge in place, as PEFT does, into a float weight.

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
            return adapted(
                self.base_layer,
                x,
                [update_of(self, name, x, *each) for name, each in factors.items()],
            )
        result: Tensor = self.base_layer(x, *args, **kwargs)
        updates = [
            F.linear(F.linear(self._read(x, name), a), b) for name, (a, b) in factors.items()
        ]
        return sum(updates, start=result).to(result.dtype)

    def _read(self, x: Tensor, adapter: str) -> Tensor:
        read: Tensor = self.lora_dropout[adapter](
            self._cast_input_dtype(x, self.lora_A[adapter].dtype)
        )
        return read

    def fit(self, shapes: Mapping[str, Sequence[int]], prefix: str) -> None:
        """Make room for the triplets of the weights in `shapes`, which are still to be loaded and
        whose names have `prefix`.
        """
        for adapter, rank in self.r.items():
            wanted = shapes.get(f"{prefix}lora_A.{adapter}", (rank,))[0]
            if wanted != rank:
                for key, dim in TRIPLET_DIMENSION.items():
                    old = getattr(self, key)[adapter]
                    replace_data(
                        old,
                        old.data.new_zeros(
                            [wanted if i == dim else n for i, n in enumerate(old.shape)]
                        ),
                    )
                self.note_rank(adapter, wanted)

    def note_rank(self, adapter: str, rank: int) -> None:
        """Write a new rank into the config, as PEFT reads it from there: how many of init_r
        booleans are True.
        """
        self.r[adapter] = rank
        config = self.config[adapter]
        others = {
            key: kept
            for key, kept in (config.rank_pattern or {}).items()
            if key != f"{self.name}.lora_E"
        }
        own = (
            {f"{self.name}.lora_E": [i < rank for i in range(config.init_r)]}
            if rank != config.init_r
            else {}
        )
        config.rank_pattern = others | own or None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        self.fit({name: value.shape for name, value in state_dict.items()}, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the adapter, as PEFT does, but leave it float32: PEFT would round it to the base
        layer's dtype on the way.
        """
        target = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        for key in (*TRIPLET_DIMENSION, "ranknum"):
            for name, parameter in getattr(self, key).items():
                if name == adapter_name and target is not None and not parameter.is_meta:
                    parameter.data = parameter.data.to(target)


def replace_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a float32 parameter data of another shape; optimisers and modules go on holding the same
    parameter.
    """
    parameter.grad = None
    parameter.data = data.to(
        torch.bfloat16
    )  # autograd remembers a shape for as long as a loss lives, but not a dtype
    parameter.data = data


def adapted_layers(model: nn.Module, adapter: str) -> list[AdaLoraLinear]:
    """Return the layers of `model` that carry an AdaLoRA adapter of that name."""
    return [
        module
        for module in model.modules()
        if isinstance(module, AdaLoraLinear) and adapter in module.lora_A
    ]


def ranks(model: nn.Module, adapter: str = "default") -> dict[str, int]:
    """Return the number of triplets that each adapted layer of `model` holds, by the layer's name
    in the backbone.
    """
    return {layer.name: layer.r[adapter] for layer in adapted_layers(model, adapter)}


def fit_ranks(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give each AdaLoRA layer of `model` the ranks of the weights named in `shapes`, so that they
    can be loaded into it.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, AdaLoraLinear):
            layer.fit(shapes, f"{name}.")
