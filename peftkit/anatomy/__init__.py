"""What a transformers model is made of, found from its structure.

Whatever must know where things are in a model asks here.
"""

from peftkit.anatomy.attention import (
    Attention,
    attentions,
    computes_attention,
    key_value_projections,
    why_none,
)
from peftkit.anatomy.blocks import Block, Stack, feed_forward_outputs, is_convolutional, stacks
from peftkit.anatomy.layers import (
    convolutions,
    features,
    fused_experts,
    is_convolution,
    is_linear,
    is_reversible,
    left_alone,
    linear_layers,
    output_modules,
    task_head,
    task_type,
)
from peftkit.anatomy.norms import is_norm, stream_norms
from peftkit.anatomy.outputs import first_tensor, with_first_tensor
from peftkit.anatomy.sublayers import Sublayer

__all__ = [
    "Attention",
    "Block",
    "Stack",
    "Sublayer",
    "attentions",
    "computes_attention",
    "convolutions",
    "features",
    "feed_forward_outputs",
    "first_tensor",
    "fused_experts",
    "is_convolution",
    "is_convolutional",
    "is_linear",
    "is_norm",
    "is_reversible",
    "key_value_projections",
    "left_alone",
    "linear_layers",
    "output_modules",
    "stacks",
    "stream_norms",
    "task_head",
    "task_type",
    "why_none",
    "with_first_tensor",
]
