"""The prefixes of one attention module: their parameters, and the forward pass in which they join."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.anatomy.attention import Attention
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.prefix.attention import Joining, Prefix
from peftkit.methods.prefix.matrix_products import Heads

CHILD = "prefix"
"""Name of the module that is added to an attention."""


class PrefixLayer(nn.Module, BaseTunerLayer):
    """The prefixes of one attention module, by the name of their adapter; a child of that module.

    ``prefix_key`` is [groups, num_virtual_tokens, key width] and ``prefix_value`` [groups,
    num_virtual_tokens, value width], float32. With a projection, ``prefix_embedding`` and
    ``prefix_projection`` stand in their place.
    """

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_embedding", "prefix_projection")
    cast_input_dtype_enabled = (
        True  # PEFT's disable_input_dtype_casting sets it on every layer of an adapter
    )
    other_param_names = ("dropout",)
    weight = bias = None  # what PEFT asks of a layer that wraps another

    def __init__(self, site: Attention) -> None:
        super().__init__()
        self.site = site
        self.prefix_key, self.prefix_value = nn.ParameterDict(), nn.ParameterDict()
        self.prefix_embedding, self.prefix_projection = nn.ParameterDict(), nn.ModuleDict()
        self.dropout: dict[str, float] = {}

    def add(self, name: str, config: Any, device: torch.device) -> None:
        """Add an adapter with new values, as a ``PrefixConfig`` says."""
        site, count = self.site, config.num_virtual_tokens
        self.dropout[name] = config.prefix_dropout
        if config.prefix_projection:
            width = config.encoder_hidden_size
            outputs = site.groups * (site.key_width + site.value_width)
            self.prefix_embedding[name] = nn.Parameter(torch.randn(count, width, device=device))
            self.prefix_projection[name] = nn.Sequential(
                nn.Linear(width, width, device=device, dtype=torch.float32),
                nn.Tanh(),
                nn.Linear(width, outputs, device=device, dtype=torch.float32),
            )
        else:
            for values, width in (
                (self.prefix_key, site.key_width),
                (self.prefix_value, site.value_width),
            ):
                new = torch.randn(site.groups, count, width, device=device, dtype=torch.float32)
                values[name] = nn.Parameter(new * config.init_std)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def keys_and_values(self, name: str) -> tuple[Tensor, Tensor]:
        """Return an adapter's keys and values, [groups, n, width], computed by its network if it
        has one.
        """
        if name not in self.prefix_projection:
            return self.prefix_key[name], self.prefix_value[name]
        site = self.site
        project: Any = self.prefix_projection[name]
        made: Tensor = project(self.prefix_embedding[name])
        made = made.reshape(len(made), site.groups, -1).transpose(0, 1)
        return made[..., : site.key_width], made[..., site.key_width :]

    def fold(self, name: str) -> None:
        """Put plain keys and values in the place of an adapter's network."""
        if name in self.prefix_projection:
            with torch.no_grad():
                keys, values = self.keys_and_values(name)
            trained = self.prefix_embedding[name].requires_grad
            del self.prefix_projection[name], self.prefix_embedding[name]
            self.prefix_key[name] = nn.Parameter(keys.clone(), requires_grad=trained)
            self.prefix_value[name] = nn.Parameter(values.clone(), requires_grad=trained)

    def active_prefix(self) -> Prefix | None:
        """Return what the active adapters make the attention see, one after the other; None where
        it is the model's own.
        """
        active: Any = self.active_adapters
        names = [name for name in active if name in self.dropout]
        if self.disable_adapters or not names:
            return None
        parts = []
        for name in names:
            rate = self.dropout[name]
            parts.append(
                tuple(F.dropout(part, rate, self.training) for part in self.keys_and_values(name))
            )
        keys, values = (
            torch.cat(part, dim=1) if len(names) > 1 else part[0]
            for part in zip(*parts, strict=True)
        )
        return Prefix(
            keys, values, Heads(self.site.heads, self.site.before_blocks), self.site.alibi
        )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a prefix adds keys and values, not weights, and cannot be merged; keep the adapter beside the model"
        )


def attend(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run an attention module's forward pass with the active prefix joined.

    Raises:
        TargetError: the attention went a way on which the prefix could not join. It is never left
            out in silence.
    """
    layer: Any = getattr(module, CHILD)
    prefix = layer.active_prefix()
    if prefix is None:
        return forward(*args, **kwargs)
    first = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    batches = (
        tuple(first.shape[:2]) if first is not None else ()
    )  # some models have the tokens first
    joining = Joining(replace(prefix, heads=replace(prefix.heads, batches=batches)))
    with joining.in_chunks(module), joining:
        output = forward(*args, **kwargs)
    if not joining.complete:
        raise TargetError(
            f"the prefix of {layer.site.name} could not join: the attention was not computed by operations that can be "
            "followed; load the model with attn_implementation='sdpa' or 'eager', or leave this module out of target_modules"
        )
    return output
