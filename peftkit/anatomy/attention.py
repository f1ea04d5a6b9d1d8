"""The modules of a model that compute attention, and the shape of their heads."""

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
    "num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads", "heads",
    "attention_heads",
]  # fmt: skip
_GROUPS = ["num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads"]
_KEY_WIDTH = [
    "qk_head_dim", "qk_channels_per_head", "head_dim", "attention_head_size", "key_value_proj_dim",
    "dim_head", "d_head", "dim_key", "head_size", "key_dim",
]  # fmt: skip
_VALUE_WIDTH = ["v_head_dim", "v_channels_per_head", "value_head_dim"]
_KEY = [
    "k_proj", "key", "k", "k_lin", "key_proj", "linear_k", "project_k", "Wk", "projection_key",
    "k_head", "to_k",
]  # fmt: skip
_VALUE = [
    "v_proj", "value", "v", "v_lin", "value_proj", "linear_v", "project_v", "Wv",
    "projection_value", "v_head", "to_v",
]  # fmt: skip
_FUSED = [
    "queries_keys_values", "keys_values", "query_key", "qkv", "qkv_proj", "query_key_value",
    "c_attn", "Wqkv", "att_proj", "kv_proj", "kv_b_proj", "to_kv", "in_proj", "qkv_linear",
]  # fmt: skip

# Attention in name, but not a softmax over the scores of keys: why not, by the start or the end of
# the class's name.
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
# Attention over blocks or windows of tokens, whose axis follows that of the heads.
_BEFORE_BLOCKS = re.compile(
    "^BigBird.*BlockSparse|^PegasusXGlobalLocal|^HieraMaskUnit|^(LSH|Local)SelfAttention$"
)
# Modules that turn their input into discrete codes or borders: no gradient flows back through them.
_DISCRETE = re.compile("Patcher$|^MimiModel$|VQVAE")


@dataclass(frozen=True)
class Attention:
    """A module whose forward pass computes attention: softmax(Q K^T / sqrt(key width)) V.

    Q is [batch, heads, queries, key width], K is [batch, groups, keys, key width], and V is
    [batch, groups, keys, value width].
    """

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
    discrete = []
    for name, module in model.named_modules():
        if _DISCRETE.search(type(module).__name__):
            discrete.append(f"{name}.")
        if name.startswith(tuple(discrete)) or not computes_attention(module):
            continue
        attention = _read_shape(name, module)
        if attention is not None:
            found.append(_at_its_place(attention, model))
    return found


def _at_its_place(attention: Attention, model: nn.Module) -> Attention:
    """Return an attention under the name of the module that stays where it is.

    BigBird puts another module in the place of its block-sparse attention when the input is short:
    what stays is the parent.
    """
    parent = attention.name.rpartition(".")[0]
    if parent and hasattr(model.get_submodule(parent), "set_attention_type"):
        return dataclasses.replace(attention, name=parent)
    return attention


def key_value_projections(model: nn.Module, attention: Attention) -> list[str]:
    """Return the linear layers that make the keys and the values of an attention.

    Where one layer makes them together with the queries, it is that layer. An attention that holds
    its projections as bare parameters has none.
    """
    module = model.get_submodule(attention.name)
    apart, fused = [], []
    for name, part in module.named_modules():
        if not is_linear(part):
            continue
        last = name.rpartition(".")[2]
        if last in _KEY or last in _VALUE:
            apart.append(f"{attention.name}.{name}")
        elif last in _FUSED:
            fused.append(f"{attention.name}.{name}")
    return apart or fused


def computes_attention(module: nn.Module) -> bool:
    """Return whether a module's own code takes a softmax over scores of keys.

    It may also ask torch or transformers to do so.
    """
    if isinstance(module, nn.MultiheadAttention):
        return True
    if not _NAME.search(type(module).__name__) or _why_no_keys(module):
        return False
    if _names_in_code(module) & _SCORES:
        return True
    return any(isinstance(child, nn.Softmax) for child in module.children())


def why_none(model: nn.Module) -> str:
    """Return why a model has no attention that `attentions` would return."""
    for module in model.modules():
        reason = _why_no_keys(module)
        if reason is not None:
            return reason
    return "none of its layers computes attention"


def _why_no_keys(module: nn.Module) -> str | None:
    """Return why a module that is called an attention has no keys; None where it may have some."""
    name = type(module).__name__
    if not _NAME.search(name):
        return None
    for pattern, reason in _NO_KEYS.items():
        if pattern.search(name):
            return reason
    return None


def _names_in_code(module: nn.Module) -> frozenset[str]:
    """Return the names that a module's own code refers to, the constructor aside."""
    kind: Any = type(module)
    return _names_in_class(kind)


@functools.cache
def _names_in_class(kind: Any) -> frozenset[str]:
    names: set[str] = set()
    for ancestor in kind.__mro__:
        if ancestor is nn.Module:
            break
        for key, method in vars(ancestor).items():
            if key == "__init__" or not callable(method):
                continue
            code = getattr(inspect.unwrap(method), "__code__", None)
            if code is not None:
                names |= _names_in(code)
    return frozenset(names)


def _names_in(code: types.CodeType) -> set[str]:
    """Return the names in compiled code, with those in the functions defined inside."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names


def _read_shape(name: str, module: nn.Module) -> Attention | None:
    """Return the shape of an attention module's heads, or None where it has no keys.

    What the module or its config states comes first; the output features of its projections fill
    the gaps.
    """
    kind = _kind_of(name, module)
    if isinstance(module, nn.MultiheadAttention):
        heads, width = module.num_heads, module.embed_dim // module.num_heads
        return Attention(name, kind, heads, heads, width, width)
    config = getattr(module, "config", None)
    heads_found = _first_number(module, _HEADS) or _first_number(config, _HEADS)
    key = _projected_features(module, _KEY)
    value = _projected_features(module, _VALUE)
    fused = _projected_features(module, _FUSED)
    calls_transformers = "ALL_ATTENTION_FUNCTIONS" in _names_in_code(module)
    if heads_found is None or not (key or fused or calls_transformers):
        return None
    heads = heads_found
    groups = _stated_groups(module, heads)
    key_width = _first_number(module, _KEY_WIDTH) or _first_number(config, ["head_dim"])
    if key_width is None and key:
        key_width = key // (groups or heads)
    if key_width is None and fused:
        key_width = fused // (3 * heads)
    if key_width is None:
        return None
    if key and key % key_width == 0:
        groups = key // key_width
    groups = groups or heads
    value_width = _first_number(module, _VALUE_WIDTH)
    if value_width is None:
        value_width = value // groups if value and value % groups == 0 else key_width
    value_width *= _first_number(module, ["attention_ratio"]) or 1
    before_blocks = bool(_BEFORE_BLOCKS.search(type(module).__name__))
    alibi = _has_alibi(module, config)
    return Attention(name, kind, heads, groups, key_width, value_width, before_blocks, alibi)


def _stated_groups(module: nn.Module, heads: int) -> int | None:
    """Return the number of key-value heads that a module states, itself or by heads in a group."""
    groups = _first_number(module, _GROUPS)
    repeats = _first_number(module, ["num_key_value_groups"])
    if groups is None and repeats is not None:
        return heads // repeats
    return groups


def _kind_of(name: str, module: nn.Module) -> Literal["self", "cross"]:
    if getattr(module, "is_cross_attention", False):
        return "cross"
    inside_block = re.split(r"\.\d+\.", name)[-1]
    return "cross" if _CROSS.search(f"{inside_block} {type(module).__name__}") else "self"


def _has_alibi(module: nn.Module, config: Any) -> bool:
    """Return whether an attention has the linear position bias of arXiv:2108.12409."""
    always = type(module).__name__ in ("BloomAttention", "MptAttention")
    return always or bool(getattr(config, "alibi", False))


def _first_number(owner: Any, names: list[str]) -> int | None:
    """Return the first of several attributes that is a whole number above 0."""
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int) and value is not True and value > 0:
            return value
    return None


def _projected_features(module: nn.Module, names: list[str]) -> int | None:
    """Return the output features of the first of several projections that a module has."""
    for name in names:
        layer = getattr(module, name, None)
        if isinstance(layer, nn.Parameter):
            return layer[0].numel()
        if isinstance(layer, nn.Module):
            inner = [part for part in layer.modules() if is_linear(part) or is_convolution(part)]
            return features(inner[-1])[1] if inner else None
    return None
