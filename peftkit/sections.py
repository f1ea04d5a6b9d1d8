"""The sections that every recipe's config is made of. Imports nothing heavy, so that `--help` is quick."""

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from peftkit.config import section

if TYPE_CHECKING:
    from peft import LoraConfig


@section
class ModelSettings:
    """Which backbone to load, and how."""

    source: str
    """A Hub id, a local directory, a .gguf file, or package:NAME/FILE for a file of an installed Python package."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """How linear layers are stored; null keeps 16 bits."""
    double_quantization: bool = True
    """Quantise the 4-bit block scales too."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of all that is not quantised, and of the activations."""
    attention: str | None = None
    """transformers' attention implementation, e.g. sdpa or eager; null lets transformers choose."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `load_backbone`."""
        import torch

        dtype = "auto" if self.dtype == "auto" else getattr(torch, self.dtype)
        return {
            "source": self.source,
            "quantization": self.quantization,
            "dtype": dtype,
            "double_quantization": self.double_quantization,
            "attention": self.attention,
        }


@section
class LoraSettings:
    """LoRA (arXiv:2106.09685); the names are those of peft.LoraConfig."""

    method: Literal["lora"] = "lora"
    r: PositiveInt = 16
    """Rank of the update."""
    lora_alpha: float = 32
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Layers to adapt, by the ends of their names."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any other field of peft.LoraConfig, e.g. {use_dora: true}."""

    def __post_init__(self) -> None:
        if self.options:
            self.build()

    def build(self) -> "LoraConfig":
        """Return PEFT's config.

        Raises:
            ConfigError: an option is not a field of peft.LoraConfig, stands beside `options` already, or PEFT refuses it.
        """
        from peft import LoraConfig

        from peftkit.errors import ConfigError, nearest

        known = LoraConfig.__dataclass_fields__
        named = {name: getattr(self, name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        for name in self.options:
            if name not in known:
                raise ConfigError(f"adapter.options.{name}: unknown key{nearest(name, known)}")
            if name in named:
                raise ConfigError(f"adapter.options.{name}: set adapter.{name} instead")
        try:
            return LoraConfig(**named, **self.options)
        except (TypeError, ValueError) as problem:
            raise ConfigError(f"adapter.options: {problem}") from problem


@section
class DataSettings:
    """Which rows to learn from."""

    train: str
    """A JSONL, JSON, CSV or Parquet file."""
    evaluation: str | None = None
    """Held-out rows, in another such file."""
    format: Literal["auto", "chat", "prompt-completion", "text"] = "auto"
    """What the rows are; "auto" tells by the columns and says so."""
    columns: dict[str, str] = field(default_factory=dict)
    """The file's names for the columns: {messages: conversation}."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest example in tokens; what is longer is cut, and counted."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Learn the answers alone, or every token."""
    system: str | None = None
    """A system message for dialogues that have none."""
