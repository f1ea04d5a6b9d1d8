"""Write an adapter in the form that servers and converters read: plain LoRA."""

from pathlib import Path

from peft import PeftModel

from peftkit.adapters.saving import write_adapter
from peftkit.errors import ConfigError
from peftkit.methods.method import method_of


def export_lora(model: PeftModel, directory: str | Path, *, name: str = "default") -> None:
    """Write an AdaLoRA adapter as the plain LoRA adapter (arXiv:2106.09685) that computes the same.

    All layers get one rank, and the scale is in the weights: vLLM, SGLang and llama.cpp read no
    patterns of ranks. Trained heads and biases are written beside it, as they are.

    Raises:
        ConfigError: `model` has no adapter of that name, or one without a form as plain LoRA.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        raise ConfigError(f"{type(model).__name__} has no adapter {name!r} to export")
    config, tensors = method_of(model.peft_config[name]).as_lora(model, name)
    write_adapter(model.get_base_model(), config, tensors, directory)
