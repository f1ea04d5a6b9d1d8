"""Where queries meet keys: the modules of a model that compute attention scores, and the shape of
their heads.
"""

import dataclasses
import functools
import inspect
import re
import types
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from peftkit.anatomy.layers import features, is_convolution, is_linear

_NAME = re.compile(r"attention|attn|mla$", re.IGNORECASE)
_CROSS = re.compile(
    r"cross|enc_?dec|encoder_attn|encoder_attention|inter_attention|src_attn", re.IGNORECASE
)
_SCORES = frozenset(
    ("Softmax", "ALL_ATTENTION_FUNCTIONS", "softmax", "logsumexp", "scaled_dot_product_attention")
)

# What different authors call one thing, the most telling first.
_HEADS = [
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "num_attn_heads",
    "heads",
    "attention_heads",
]
_GROUPS = ["num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads"]
_KEY_WIDTH = [
    "qk_head_dim",
    "qk_channels_per_head",
    "head_dim",
    "attention_head_size",
    "key_value_proj_dim",
    "dim_head",
    "d_head",
    "dim_key",
    "head_size",
    "key_dim",
]
_VALUE_WIDTH = ["v_head_dim", "v_channels_per_head", "value_head_dim"]
_KEY = [
    "k_proj",
    "key",
    "k",
    "k_lin",
    "key_proj",
    "linear_k",
    "project_k",
    "Wk",
    "projection_key",
    "k_head",
    "to_k",
]
_VALUE = [
    "v_proj",
    "value",
    "v",
    "v_lin",
    "value_proj",
    "linear_v",
    "project_v",
    "Wv",
    "projection_value",
    "v_head",
    "to_v",
]
_FUSED = [
    "queries_keys_values",
    "keys_values",
    "query_key",
    "qkv",
    "qkv_proj",
    "query_key_value",
    "c_attn",
    "Wqkv",
    "att_proj",
    "kv_proj",
    "kv_b_proj",
    "to_kv",
    "in_proj",
    "qkv_linear",
]

# Attention in name, but not a softmax over the scores of keys: by the start (or the end) of the
# class's name, why.
_NO_KEYS = {
    re.compile("^Nystromformer"): "it approximates attention through a few landmarks",
    re.compile("^Mra"): "it approximates attention block by block in kernels of its own",
    re.compile("^Yoso"): "it estimates attention by hashing",
    re.compile("^IBert"): "it computes attention in whole numbers",
    re.compile("^MobileViTV2"): "its linear attention scores tokens against one query",
    re.compile("^SwiftFormer"): "its additive attention has no scores of keys",
    re.compile("Deformable"): "its deformable attention samples positions and has no keys",
    re.compile(
        "(Gated|Pooling|MHAttentionMap|GRUCell|BlockAttentionResidual)(Attention)?$"
    ): "it weighs features, not keys",
}
# Attention over blocks or windows of tokens whose axis follows that of the heads.
_BEFORE_BLOCKS = re.compile(
    "^BigBird.*BlockSparse|^PegasusXGlobalLocal|^HieraMaskUnit|^(LSH|Local)SelfAttention$"
)
# Modules that turn their input into discrete codes or borders: no gradient comes back from these.
_DISCRETE = re.compile("Patcher$|^MimiModel$|VQVAE")


@dataclass(frozen=True)
class Attention:
    """A module whose forward pass computes attention: softmax(q K^T) V."""

    name: str
    kind: Literal["self", "cross"]
    heads: int
    groups: int
    """Number of key-value heads."""
    key_width: int
    """Features of a key, in each head."""
    value_width: int
    """Features of a value, in each head."""
    before_blocks: bool = False
    """Whether tensors have an axis of blocks or windows between heads and tokens."""
    alibi: bool = False
    """Whether the scores get a bias that is linear in the position of the key."""


def attentions(model: nn.Module) -> list[Attention]:
    """Return every module of a model that computes attention, in the model's order."""
    found = []
    discrete = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if _DISCRETE.search(type(module).__name__)
    )
    for name, module in model.named_modules():
        if (
            not name.startswith(discrete)
            and computes_attention(module)
            and (read := _read(name, module))
        ):
            parent = name.rpartition(".")[0]
            # BigBird puts another module in the place of its block-sparse attention when the input
            # is short.
            replaced = hasattr(model.get_submodule(parent), "set_attention_type")
            found.append(dataclasses.replace(read, name=parent) if replaced and parent else read)
    return found


def computes_attention(module: nn.Module) -> bool:
    """Tell whether a module's own code takes a softmax over scores of keys, or asks torch or
    transformers for it.
    """
    if isinstance(module, nn.MultiheadAttention):
        return True
    if not _NAME.search(type(module).__name__) or _why_not(module):
        return False
    return bool(_code(module) & _SCORES) or any(
        isinstance(c, nn.Softmax) for c in module.children()
    )


def why_none(model: nn.Module) -> str:
    """Return why a model has no attention that `attentions` would return."""
    reasons = [reason for module in model.modules() if (reason := _why_not(module))]
    return reasons[0] if reasons else "none of its layers computes attention"


def _why_not(module: nn.Module) -> str | None:
    name = type(module).__name__
    return next(
        (why for pattern, why in _NO_KEYS.items() if _NAME.search(name) and pattern.search(name)),
        None,
    )


def _code(module: nn.Module) -> frozenset[str]:
    kind: Any = type(module)
    return _names_in_code(kind)


@functools.cache
def _names_in_code(cls: Any) -> frozenset[str]:
    """Return the names that the methods of a transformers class refer to, the constructor aside."""
    names: set[str] = set()
    for ancestor in cls.__mro__:
        if ancestor is nn.Module:
            break
        for key, method in vars(ancestor).items():
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if key != "__init__" and code is not None:
                names |= _names(code)
    return frozenset(names)


def _names(code: types.CodeType) -> set[str]:
    inner = [
        _names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)
    ]
    return set(code.co_names).union(*inner)


def _read(name: str, module: nn.Module) -> Attention | None:
    """Return the shape of an attention module's heads, or None where it has no keys."""
    config = getattr(module, "config", None)
    if isinstance(module, nn.MultiheadAttention):
        width = module.embed_dim // module.num_heads
        return Attention(
            name, _kind(name, module), module.num_heads, module.num_heads, width, width
        )
    heads = _number(module, _HEADS) or _number(config, _HEADS)
    key, value, fused = (_projected(module, names) for names in (_KEY, _VALUE, _FUSED))
    if heads is None or not (key or fused or "ALL_ATTENTION_FUNCTIONS" in _code(module)):
        return None
    width = _number(module, _KEY_WIDTH) or _number(config, ["head_dim"])
    groups = _number(module, _GROUPS)
    if groups is None and (repeats := _number(module, ["num_key_value_groups"])):
        groups = heads // repeats
    if width is None and key:
        width = key // (groups or heads)
    if width is None and fused:
        width = fused // (3 * heads)
    if width is None:
        return None
    if key and key % width == 0:
        groups = key // width
    groups = groups or heads
    value_width = _number(module, _VALUE_WIDTH) or (
        value // groups if value and value % groups == 0 else width
    )
    value_width *= _number(module, ["attention_ratio"]) or 1
    blocks = bool(_BEFORE_BLOCKS.search(type(module).__name__))
    return Attention(
        name, _kind(name, module), heads, groups, width, value_width, blocks, _alibi(module, config)
    )


def _kind(name: str, module: nn.Module) -> Literal["self", "cross"]:
    if getattr(module, "is_cross_attention", False):
        return "cross"
    inside = re.split(r"\.\d+\.", name)[-1]
    return "cross" if _CROSS.search(f"{inside} {type(module).__name__}") else "self"


def _alibi(module: nn.Module, config: Any) -> bool:
    return bool(getattr(config, "alibi", False)) or type(module).__name__ in (
        "BloomAttention",
        "MptAttention",
    )


def _number(owner: Any, names: list[str]) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and value is not True and value > 0),
        None,
    )


def _projected(module: nn.Module, names: list[str]) -> int | None:
    """Return how many features the first of these projections puts out."""
    for name in names:
        layer = getattr(module, name, None)
        if isinstance(layer, nn.Parameter):
            return layer[0].numel()
        if isinstance(layer, nn.Module):
            inner = [part for part in layer.modules() if is_linear(part) or is_convolution(part)]
            return features(inner[-1])[1] if inner else None
    return None
