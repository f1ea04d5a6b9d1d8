"""Prefix tuning (arXiv:2101.00190): learned keys and values that every query attends to.

``head_i = softmax(q_i [Pk; K]^T / sqrt(d)) [Pv; V]`` in each layer, with Pk and Pv trained and all
else frozen. They take part inside the attention (`peftkit.methods.prefix.attention`): positions and
rotary angles of real tokens do not change, the prefix's keys have no position, and no cache
contains them. Unlike LoRA, a new prefix changes the model's output.

With rotary positions, how a query sees the prefix depends on the query's position. So batches
padded on the left need ``position_ids`` that count real tokens, as models with learned positions
do. ``generate`` passes them.
"""

from dataclasses import dataclass

from peft import PeftConfig, PeftType

from peftkit.config.numbers import is_number, is_whole
from peftkit.errors import ConfigError


@dataclass
class PrefixConfig(PeftConfig):
    """Prefix tuning (arXiv:2101.00190) in every attention of a model.

    Args:
        num_virtual_tokens: Length of the prefix; at least 1. Published: 5 to 200.
        prefix_projection: Reparametrise (equation 3): train an embedding [num_virtual_tokens,
            encoder_hidden_size] and a two-layer tanh network that computes keys and values from
            it, one for each attention. Steadier to train, and as fast in inference: `load` replaces
            it by the keys and values.
        encoder_hidden_size: Width of that embedding and of the network's middle layer; at least 1.
        prefix_dropout: Dropout on the prefix's keys and values; at least 0 and less than 1.
        init_std: Standard deviation of keys and values at the start, without
            `prefix_projection`; more than 0.
        attention: Which attentions get a prefix: "all", or "self" or "cross" alone (of an
            encoder-decoder).
        target_modules: Names (or ends of names) of attention modules, in place of what `attention`
            finds.
        layers_to_transform: Numbers of the layers that get a prefix; None is all.
        modules_to_save: Modules to train whole, beside the prefix; None trains the task's head.

    Raises:
        ConfigError: names every value that is out of bounds.
    """

    num_virtual_tokens: int = 30
    prefix_projection: bool = False
    encoder_hidden_size: int = 512
    prefix_dropout: float = 0.0
    init_std: float = 0.02
    attention: str = "all"
    target_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        """Check the values, and name the method to PEFT."""
        super().__post_init__()
        self.peft_type = PeftType("PREFIX")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        check_bounds(self)


def check_bounds(config: PrefixConfig) -> None:
    """Raise a ConfigError that names every value out of bounds."""
    problems = []
    for name in ("num_virtual_tokens", "encoder_hidden_size"):
        value = getattr(config, name)
        if not is_whole(value) or value < 1:
            problems.append(f"{name} is {value!r}; it must be a whole number of at least 1")
    if not is_number(config.prefix_dropout) or not 0 <= config.prefix_dropout < 1:
        problems.append(
            f"prefix_dropout is {config.prefix_dropout!r}; it must be at least 0 and less than 1"
        )
    if not is_number(config.init_std) or config.init_std <= 0:
        problems.append(f"init_std is {config.init_std!r}; it must be more than 0")
    if not isinstance(config.prefix_projection, bool):
        problems.append(
            f"prefix_projection is {config.prefix_projection!r}; it must be true or false"
        )
    if config.attention not in ("all", "self", "cross"):
        problems.append(f"attention is {config.attention!r}; it must be 'all', 'self' or 'cross'")
    if problems:
        raise ConfigError("PrefixConfig: " + "; ".join(problems))
