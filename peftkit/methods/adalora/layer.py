"""AdaLoRA (arXiv:2303.10512): y = W x + s P Λ Q dropout(x), with W frozen and P, Q kept near
orthogonal (Eq. 3).

Each of the r columns of P, rows of Q and singular values in Λ is a triplet; `allocation` decides
which of them stay. In PEFT's names, which the files have: lora_A = Q (r, in), lora_E = diag Λ (r,
1), lora_B = P (out, r). Λ starts at zero, so y = W x until trained. PEFT's scale, s = lora_alpha /
(init_r + 1e-5), does not change when triplets leave, so that files interchange.

This stands on peft 0.21: layer and model are subclasses of PEFT's, put in their place while
`attach` injects, and nowhere else.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adalora import AdaLoraLayer, AdaLoraModel, SVDLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftkit.backbones.quantization import quantization_of
from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError
from peftkit.methods.lora import targets as lora
from peftkit.methods.lora.layer import Arithmetic, adapted, update_of

# The fields of LoraConfig that mean something to AdaLoRA. PEFT ignores the others without a word;
# here they are refused.
_HONOURED = {
    "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "modules_to_save", "r", "target_modules", "trainable_token_indices",
}  # fmt: skip


def resolve(config: AdaLoraConfig, model: nn.Module) -> LoraConfig:
    """Return a copy of `config` with the targets, the task type and the trained heads that suit
    `model`.

    Raises:
        ConfigError: a value is out of bounds, or a field is set that AdaLoRA has no use for.
        TargetError: a name in ``target_modules`` matches no module.
    """
    problems = [*_out_of_bounds(config), *_unused(config), *_wrong_pattern(config, model)]
    if problems:
        raise ConfigError("AdaLoraConfig: " + "; ".join(problems))
    resolved = lora.resolve(config, model)
    if config.rank_pattern:  # PEFT's pattern has the adapter's name behind the key while it trains
        resolved.rank_pattern = {
            _layer(key) + ".lora_E": kept for key, kept in config.rank_pattern.items()
        }
    return resolved


def _layer(key: str) -> str:
    return key.rpartition(".lora_E")[0]


def _out_of_bounds(config: AdaLoraConfig) -> Iterator[str]:
    for name, least in (
        ("init_r", 1),
        ("target_r", 1),
        ("tinit", 0),
        ("tfinal", 0),
        ("deltaT", 1),
        ("total_step", 1),
    ):
        value = getattr(config, name)
        if not is_whole(value) or value < least:
            yield f"{name} is {value!r}; it must be a whole number of at least {least}"
    if is_whole(config.target_r) and is_whole(config.init_r) and config.target_r > config.init_r:
        yield f"target_r is {config.target_r}, more than init_r, {config.init_r}; the budget can only fall"
    for name in ("beta1", "beta2"):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 < value < 1:
            yield f"{name} is {value!r}; it must lie between 0 and 1"
    for name, bound in (("lora_alpha", "more than 0"), ("orth_reg_weight", "at least 0")):
        value = getattr(config, name)
        if not is_number(value) or value < 0 or (value == 0 and name == "lora_alpha"):
            yield f"{name} is {value!r}; it must be a finite number, {bound}"
    if not isinstance(config.init_lora_weights, bool):
        yield f"init_lora_weights is {config.init_lora_weights!r}; AdaLoRA has one start of its own, True"


def _unused(config: AdaLoraConfig) -> Iterator[str]:
    """Yield a sentence for each field of LoRA that is set and that AdaLoRA, PEFT's too, would not
    act on.
    """
    others = _HONOURED | PeftConfig.__dataclass_fields__.keys() | {"rank_pattern"}
    for field in fields(LoraConfig):
        if field.name in others or not field.init:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if value != default and value:
            yield f"{field.name} is {value!r}, which AdaLoRA has no use for; leave it out, or use LoraConfig"


def _wrong_pattern(config: AdaLoraConfig, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with a saved ``rank_pattern``: layer to list of init_r booleans, True for
    what was kept.
    """
    modules = {name for name, _ in model.named_modules()} if config.rank_pattern else set()
    for key, kept in (config.rank_pattern or {}).items():
        if _layer(key) not in modules:
            yield f"rank_pattern names {key}, which is not a layer of the model"
        elif not isinstance(kept, list) or len(kept) != config.init_r:
            yield f"rank_pattern[{key!r}] must be a list of init_r = {config.init_r} booleans"


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


def _as_it_is(rank_pattern: dict[str, Any], state_dict: Any, *adapter_name: str) -> Any:
    """Resize nothing: what is pruned has left the weights, and a layer takes the rank of the
    weights loaded into it.
    """
    return state_dict


class AdaLoraTuner(AdaLoraModel):
    """PEFT's AdaLoRA with our layers. Its forward adds nothing to the loss: `allocation` puts the
    penalty into the gradient.
    """

    is_driven = False
    resize_state_dict_by_rank_pattern = resize_modules_by_rank_pattern = staticmethod(_as_it_is)

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **options: Any) -> None:
        super().__init__(model, config, adapter_name, **options)
        # PEFT asks the whole model for these two, whose tuner is another's where AdaLoRA has joined
        # another method.
        vars(model)["resize_state_dict_by_rank_pattern"] = vars(model)[
            "resize_modules_by_rank_pattern"
        ] = _as_it_is

    def _create_and_replace(
        self, lora_config: AdaLoraConfig, adapter_name: str, target: nn.Module, target_name: str, parent: nn.Module,
        current_key: str, **options: Any,
    ) -> None:  # fmt: skip
        if isinstance(target, AdaLoraLinear):
            target.add_adapter(adapter_name, lora_config)
            return
        if isinstance(target, BaseTunerLayer):
            raise ValueError(
                f"{current_key} carries an adapter of another method, and AdaLoRA cannot share a layer with it"
            )
        if not isinstance(target, Conv1D) and not hasattr(target, "in_features"):
            raise ValueError(
                f"AdaLoRA adapts linear layers, and {current_key} is a {type(target).__name__}"
            )
        module = AdaLoraLinear(target, current_key, adapter_name, lora_config)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)
        self._replace_module(parent, target_name, module, target)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; its loss stays what it is."""
        if (
            self.training
            and torch.is_grad_enabled()
            and not self.is_driven
            and hasattr(self, "trainable_adapter_name")
        ):
            self.is_driven = True  # said once
            logging.getLogger(__name__).warning(
                "AdaLoRA trains without its budget and penalty: nothing allocates ranks for this model. Train it with "
                "peftkit.training.loop.Training, add peftkit.AdaLoraCallback() to transformers.Trainer, or call a "
                "peftkit.methods.adalora.allocation.Allocation in your own loop"
            )
        return self.model(*args, **kwargs)

    def update_and_allocate(self, global_step: int) -> None:
        """Refuse PEFT's entry for loops of one's own: it comes after the step, too late for the
        penalty.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "update_and_allocate comes too late for the penalty; make a peftkit.methods.adalora.allocation.Allocation(model, "
            "optimizer, total_steps) and call its before_step() before and its after_step(step) after optimizer.step()"
        )


@contextlib.contextmanager
def in_place_of_peft() -> Iterator[None]:
    """Make PEFT build AdaLoRA from `AdaLoraTuner` inside the block, and from its own class for
    everyone else.
    """
    own = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ADALORA]
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ADALORA] = AdaLoraTuner
    try:
        with (
            warnings.catch_warnings()
        ):  # the check is made for LoRA's patterns, whose keys are modules
            warnings.filterwarnings(
                "ignore", message="The following rank_pattern keys", category=RuntimeWarning
            )
            yield
    finally:
        PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ADALORA] = own


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
