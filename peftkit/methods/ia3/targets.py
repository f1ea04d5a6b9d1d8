"""Which layers IA3 scales (arXiv:2205.05638, section 3.3): by l_k, l_v and l_ff.

The keys become l_k * K, the values l_v * V, and the inner activation of a feed-forward layer
l_ff * gamma(W_1 x), which is the input of its last layer. The vectors start at one.
"""

from peft import IA3Config
from torch import nn

from peftkit.anatomy import attentions, feed_forward_outputs, key_value_projections
from peftkit.errors import ConfigError, TargetError
from peftkit.methods.resolution import check_names, resolved_copy, shortest_names


def resolve(config: IA3Config, model: nn.Module) -> IA3Config:
    """Return a copy of `config` with the layers, the task type and the trained heads for `model`.

    Raises:
        ConfigError: ``init_ia3_weights`` is not true: the vectors have to start at one.
        TargetError: the model has no layer that IA3 could scale, or a name matches no module.
    """
    if config.init_ia3_weights is not True:
        raise ConfigError(
            f"IA3Config: init_ia3_weights is {config.init_ia3_weights!r}; random vectors would "
            "make another model of the backbone, leave it out"
        )
    resolved = resolved_copy(config, model)
    if config.target_modules is None:
        inputs = feed_forward_outputs(model)
        outputs: list[str] = []
        for attention in attentions(model):
            outputs += key_value_projections(model, attention)
        if not inputs and not outputs:
            raise TargetError(
                f"{type(model).__name__} has no layers for the keys and values of attention and no "
                "feed-forward layer that IA3 could scale; name layers in target_modules"
            )
        resolved.target_modules = shortest_names([*inputs, *outputs], model)
        resolved.feedforward_modules = shortest_names(inputs, model)
        if not resolved.feedforward_modules <= resolved.target_modules:  # an end that both share
            resolved.target_modules = {*inputs, *outputs}
            resolved.feedforward_modules = set(inputs)
        return resolved
    if not isinstance(config.target_modules, str):
        check_names(config.target_modules, model)
    if config.feedforward_modules is None:
        resolved.feedforward_modules = set()
    elif not isinstance(config.feedforward_modules, str):
        check_names(config.feedforward_modules, model)
    return resolved
