"""Bottleneck adapters: f(z) = s · dropout(W_up σ(W_down z + b_down) + b_up) in each block.

There are four placements. u is what a sublayer adds to the residual stream x, and N is the frozen
norm of the block:

| placement       | source                     | post-norm block          | pre-norm block      |
|-----------------|----------------------------|--------------------------|---------------------|
| houlsby         | arXiv:1902.00751, fig. 2   | N(x + u + f(u))          | x + u + f(u)        |
| pfeiffer        | arXiv:2005.00052, sec. 2.2 | N(x + u + f(N(x + u)))   | h + f(h), h = x + u |
| parallel        | arXiv:2110.04366, eq. 7    | N(x + u + f(x))          | x + u + f(N(x))     |
| scaled_parallel | arXiv:2110.04366, sec. 4.6 | like parallel, s = 4     | like parallel, s = 4|

houlsby follows every sublayer (attention, cross-attention, feed-forward); the others follow the
feed-forward layer. u is the output of the sublayer's last layer, before the sublayer's own dropout.
W_up starts at zero, so attaching changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from peft import PeftConfig
from transformers.activations import ACT2FN

from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError, nearest

PLACEMENTS = {
    "houlsby": ("gelu", 1.0),
    "pfeiffer": ("relu", 1.0),
    "parallel": ("relu", 1.0),
    "scaled_parallel": ("relu", 4.0),
}
"""The default activation and scale of each placement."""
_INITS = ("zero_up", "houlsby", "bert")


@dataclass
class BottleneckConfig(PeftConfig):
    """A bottleneck adapter in the blocks of a model.

    Args:
        placement: "houlsby", "pfeiffer", "parallel" or "scaled_parallel"; the formulas are in
            this module's docstring.
        bottleneck_dim: Features m between W_down [m, d] and W_up [d, m], at least 1. None takes d /
            reduction_factor.
        reduction_factor: d / m, greater than 0. The papers use 16 for pfeiffer and 2 for parallel.
        activation: σ, by transformers' name; None takes the placement's own: gelu for houlsby, relu
            for the others.
        scale: s, a number, or "learned" for a trained one that starts at the placement's own (1,
            scaled_parallel: 4).
        dropout: Probability with which outputs of W_up are dropped, from 0 to less than 1.
        init_weights: "zero_up" (W_down as LoRA's A, W_up zero: exactly the backbone at start),
            "houlsby" (normal, cut at two of its 0.01 standard deviations) or "bert" (normal, 0.02);
            biases are zero.
        parallel_input: What parallel adapters read in a pre-norm block: "ffn", the input N(x) of
            the feed-forward layer, as in the paper's formula; or "residual", x itself, as in its
            code and in AdapterHub.
        norm_before: Put a trained LayerNorm before W_down.
        train_layer_norms: Train (copies of) the norms of the blocks as well, as Houlsby et al. do.
        layers_to_transform: Indices of the blocks that get adapters, in each stack; None is all.
        target_modules: Modules whose output gets the adapter, by the ends of their names; None
            leaves the choice to the placement.
        modules_to_save: Modules that are trained whole; None is the head of a classification task.

    Raises:
        ConfigError: values are out of bounds; the message names all of them.
    """

    placement: str = "pfeiffer"
    bottleneck_dim: int | None = None
    reduction_factor: float = 16.0
    activation: str | None = None
    scale: float | str | None = None
    dropout: float = 0.0
    init_weights: str = "zero_up"
    parallel_input: str = "ffn"
    norm_before: bool = False
    train_layer_norms: bool = False
    layers_to_transform: list[int] | None = None
    target_modules: list[str] | set[str] | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        from peft import PeftType

        self.peft_type = PeftType("BOTTLENECK")
        problems = [*_not_allowed(self), *_out_of_bounds(self), *_of_wrong_type(self)]
        if problems:
            raise ConfigError("BottleneckConfig: " + "; ".join(problems))


def _not_allowed(config: BottleneckConfig) -> Iterator[str]:
    for name, allowed in (
        ("placement", tuple(PLACEMENTS)),
        ("init_weights", _INITS),
        ("parallel_input", ("ffn", "residual")),
        ("activation", (None, *ACT2FN)),
    ):
        value = getattr(config, name)
        if value not in allowed:
            yield f"{name} is {value!r}{nearest(str(value), [str(one) for one in allowed])}"
    if config.activation in ACT2FN and list(ACT2FN[config.activation].parameters()):
        yield f"activation is {config.activation!r}, which has weights; choose one without"


def _out_of_bounds(config: BottleneckConfig) -> Iterator[str]:
    middle = config.bottleneck_dim
    if middle is not None and (not is_whole(middle) or middle < 1):
        yield f"bottleneck_dim is {middle!r}; it must be a whole number of at least 1"
    if not is_number(config.reduction_factor) or config.reduction_factor <= 0:
        yield f"reduction_factor is {config.reduction_factor!r}; it must be greater than 0"
    if not is_number(config.dropout) or not 0 <= config.dropout < 1:
        yield f"dropout is {config.dropout!r}; it must be at least 0 and less than 1"
    if config.scale not in (None, "learned") and (not is_number(config.scale) or config.scale == 0):
        yield f"scale is {config.scale!r}; it must be a finite number other than 0, or 'learned'"


def _of_wrong_type(config: BottleneckConfig) -> Iterator[str]:
    for name in ("norm_before", "train_layer_norms"):
        if not isinstance(getattr(config, name), bool):
            yield f"{name} is {getattr(config, name)!r}; it must be true or false"
    for name, kind in (
        ("layers_to_transform", int),
        ("target_modules", str),
        ("modules_to_save", str),
    ):
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(value, str | int) or not all(isinstance(one, kind) for one in value):
            expected = "numbers" if kind is int else "names"
            yield f"{name} is {value!r}; it must be a list of {expected}"
