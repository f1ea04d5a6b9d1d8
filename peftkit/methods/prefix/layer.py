"""The prefixes of one attention module: their parameters and the forward pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.anatomy.attention import Attention
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.prefix.attention import AttentionWithPrefix, Prefix
from peftkit.methods.prefix.matrix_products import Heads

CHILD = "prefix"
"""Name of the module that is added to an attention."""


class PrefixLayer(nn.Module, BaseTunerLayer):
    """The prefixes of one attention module, by adapter; a child of that module.

    ``prefix_key`` is [groups, num_virtual_tokens, key width], and ``prefix_value`` is [groups,
    num_virtual_tokens, value width], both float32. With a projection there are
    ``prefix_embedding`` and ``prefix_projection`` instead.
    """

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_embedding", "prefix_projection")
    # PEFT's disable_input_dtype_casting sets it on every layer of an adapter.
    cast_input_dtype_enabled = True
    other_param_names = ("dropout",)  # what PEFT's delete_adapter removes as well
    weight = bias = None  # PEFT expects them of a layer that wraps another

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
        """Return an adapter's keys and values, [groups, n, width], from its network if any."""
        if name not in self.prefix_projection:
            return self.prefix_key[name], self.prefix_value[name]
        site = self.site
        project: Any = self.prefix_projection[name]
        made: Tensor = project(self.prefix_embedding[name])  # [n, groups * (key + value width)]
        made = made.reshape(len(made), site.groups, -1).transpose(0, 1)  # [groups, n, both]
        return made[..., : site.key_width], made[..., site.key_width :]

    def replace_network(self, name: str) -> None:
        """Replace an adapter's network by the keys and values that it computes."""
        if name in self.prefix_projection:
            with torch.no_grad():
                keys, values = self.keys_and_values(name)
            trained = self.prefix_embedding[name].requires_grad
            del self.prefix_projection[name], self.prefix_embedding[name]
            self.prefix_key[name] = nn.Parameter(keys.clone(), requires_grad=trained)
            self.prefix_value[name] = nn.Parameter(values.clone(), requires_grad=trained)

    def active_prefix(self) -> Prefix | None:
        """Return the prefixes of the active adapters, one after the other; None without any."""
        active: Any = self.active_adapters
        names = [name for name in active if name in self.dropout]
        if self.disable_adapters or not names:
            return None
        all_keys, all_values = [], []
        for name in names:
            rate = self.dropout[name]
            keys, values = self.keys_and_values(name)
            all_keys.append(F.dropout(keys, rate, self.training))
            all_values.append(F.dropout(values, rate, self.training))
        keys, values = all_keys[0], all_values[0]
        if len(names) > 1:
            keys, values = torch.cat(all_keys, dim=1), torch.cat(all_values, dim=1)
        heads = Heads(self.site.heads, self.site.before_blocks)
        return Prefix(keys, values, heads, self.site.alibi)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a prefix adds keys and values, not weights, and cannot be merged; keep the adapter "
            "beside the model"
        )


def attend(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run an attention module's forward pass with the active prefix.

    Raises:
        TargetError: the attention was computed in a way in which the prefix could not take part. A
            prefix is never left out silently.
    """
    layer: Any = getattr(module, CHILD)
    prefix = layer.active_prefix()
    if prefix is None:
        return forward(*args, **kwargs)
    batches: tuple[int, ...] = ()
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor):
            batches = tuple(x.shape[:2])  # in some models the tokens come first
            break
    heads = replace(prefix.heads, batches=batches)
    attention = AttentionWithPrefix(replace(prefix, heads=heads))
    with attention.in_chunks(module), attention:
        output = forward(*args, **kwargs)
    if not attention.has_joined:
        raise TargetError(
            f"the prefix of {layer.site.name} could not join: the attention was not computed by "
            "operations that can be followed; load the model with attn_implementation='sdpa' or "
            "'eager', or leave this module out of target_modules"
        )
    return output
