"""The sections that every recipe's config is made of. Imports nothing heavy, so that `--help` is
quick.
"""

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
)

from peftkit.config.keys import section

if TYPE_CHECKING:
    from peft import PeftConfig


@section
class ModelSettings:
    """Which backbone to load, and how."""

    source: str
    """A Hub id, a directory, a .gguf file, a config.json (random weights), or package:NAME/FILE of
    an installed package.
    """
    quantization: Literal["int8", "nf4", "fp4"] | None = None
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
class AdapterSettings:
    """What the methods have in common. Each names its config class of peft or peftkit, whose field
    names it uses.
    """

    options: dict[str, Any] = field(default_factory=dict)
    """Any other field of the method's config, e.g. {use_dora: true}."""

    def __post_init__(self) -> None:
        if self.options:
            self.build()

    def build(self) -> "PeftConfig":
        """Return the method's config.

        Raises:
            ConfigError: an option is not a field of the config, stands beside `options` already, or
                a value is refused.
        """
        import peftkit
        from peftkit.errors import ConfigError, nearest

        kind = getattr(peftkit, _CONFIGS[vars(self)["method"]])
        known = kind.__dataclass_fields__
        named = {name: value for name, value in vars(self).items() if name in known}
        for name in self.options:
            if name not in known:
                raise ConfigError(f"adapter.options.{name}: unknown key{nearest(name, known)}")
            if name in named:
                raise ConfigError(f"adapter.options.{name}: set adapter.{name} instead")
        try:
            config: PeftConfig = kind(**named, **self.options)
        except (TypeError, ValueError) as problem:
            raise ConfigError(f"adapter.options: {problem}") from problem
        return config


_CONFIGS = {
    "lora": "LoraConfig",
    "adalora": "AdaLoraConfig",
    "bottleneck": "BottleneckConfig",
    "prefix": "PrefixConfig",
}


@section
class LoraSettings(AdapterSettings):
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


@section
class AdaLoraSettings(AdapterSettings):
    """AdaLoRA (arXiv:2303.10512); the names are those of peft.AdaLoraConfig. The run gives
    total_step.
    """

    method: Literal["adalora"] = "adalora"
    init_r: PositiveInt = 12
    """Rank that every layer starts with."""
    target_r: PositiveInt = 8
    """Mean rank of the layers at the end."""
    tinit: NonNegativeInt = 0
    """Steps before the budget begins to fall."""
    tfinal: NonNegativeInt = 0
    """Steps at the end with the final budget."""
    deltaT: PositiveInt = 1  # noqa: N815 -- PEFT's name
    """Steps from one allocation to the next."""
    lora_alpha: float = 32
    """Scale: the update is multiplied by lora_alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    orth_reg_weight: NonNegativeFloat = 0.1
    """Weight of the penalty that keeps singular vectors orthogonal."""
    total_step: PositiveInt = 1_000_000
    """Overwritten with the length of the run."""


@section
class BottleneckSettings(AdapterSettings):
    """Bottleneck adapters; the names are those of peftkit.BottleneckConfig."""

    method: Literal["bottleneck"] = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel", "scaled_parallel"] = "pfeiffer"
    """After every sublayer (arXiv:1902.00751), after the block (arXiv:2005.00052), or beside the
    feed-forward layer.
    """
    reduction_factor: PositiveFloat = 16.0
    """Width of the model over the width of the bottleneck."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's output."""


@section
class PrefixSettings(AdapterSettings):
    """Prefix tuning (arXiv:2101.00190); the names are those of peftkit.PrefixConfig."""

    method: Literal["prefix"] = "prefix"
    num_virtual_tokens: PositiveInt = 30
    """Length of the prefix."""
    prefix_projection: bool = False
    """Learn keys and values by way of a two-layer network."""


def _method(values: Any) -> str:
    """Return which method a section is for: the one that it names, or LoRA."""
    return str(
        values.get("method", "lora")
        if isinstance(values, dict)
        else getattr(values, "method", "lora")
    )


Adapter = Annotated[
    Annotated[LoraSettings, Tag("lora")]
    | Annotated[AdaLoraSettings, Tag("adalora")]
    | Annotated[BottleneckSettings, Tag("bottleneck")]
    | Annotated[PrefixSettings, Tag("prefix")],
    Discriminator(_method),
]
"""The section of a recipe that chooses the method: `method: lora` (the default), `adalora`,
`bottleneck` or `prefix`.
"""


@section
class LeanSettings:
    """What is made lean of a training step: less memory and time, the same numbers up to rounding."""

    layers: bool = True
    """LoRA and AdaLoRA keep no copy of what they read."""
    loss: bool = True
    """A language model's logits are never whole in memory."""
    norms: bool = True
    """Norms keep their inputs alone, and compute the rest again."""
    feed_forward: bool = True
    """Feed-forward layers keep what their first layers give, and compute the rest again."""
    weights: bool = False
    """Dequantise 4-bit weights twice and not three times a step where blocks are checkpointed, for
    one block's in 16 bits.
    """


@section
class ReplaySettings:
    """Old rows to learn again beside new ones, against forgetting."""

    train: str
    """The file with the old rows."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Old rows in an epoch, as a share of all rows of the epoch; drawn once, by the run's seed."""


@section
class RowSettings:
    """Which rows to learn from."""

    train: str | list[str]
    """A JSONL, JSON, CSV or Parquet file, or several; sample:NAME/SPLIT for one of peftkit's
    samples.
    """
    evaluation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Held-out rows: another such file, or the share of the training rows to hold out."""
    columns: dict[str, str] = field(default_factory=dict)
    """The file's names for the columns: {messages: conversation}."""
    replay: ReplaySettings | None = None
    """Rows of an earlier task to learn again."""
    retention: str | None = None
    """Held-out rows of an earlier task: the report says what the training has changed there."""


@section
class TextSettings(RowSettings):
    """Which rows to learn from, and how much of each."""

    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest example in tokens; what is longer is cut, and counted."""


@section
class DataSettings(TextSettings):
    """Which dialogues, completions or texts to learn from."""

    format: Literal["auto", "chat", "prompt-completion", "alpaca", "sharegpt", "text"] = "auto"
    """What the rows are; "auto" tells by the columns and says so."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest example in tokens; what is longer is cut, and counted."""
    loss_on: Literal["assistant", "all"] | None = None
    """Learn the answers alone, or every token; null is the answers where there are answers."""
    packing: bool | Literal["batch"] = False
    """Rows behind each other that do not see each other: true fills examples of max_length tokens,
    "batch" puts those of a micro-batch into one, which is the same step without padding."""
    system: str | None = None
    """A system message for dialogues that have none."""

    def __post_init__(self) -> None:
        if self.loss_on == "assistant" and self.format == "text":
            raise ValueError(
                "loss_on: assistant needs rows with answers; text rows have none, leave it out"
            )


@section
class GenerationSettings:
    """How a model writes."""

    max_new_tokens: PositiveInt = 64
    """Longest text to write, in tokens."""
    num_beams: PositiveInt = 1
    """Beams of the search; 1 is greedy."""
    length_penalty: float = 1.0
    """With beams: above 1 favours longer texts."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """No sequence of so many tokens twice; 0 allows all."""
    temperature: NonNegativeFloat = 0.0
    """Draws tokens by their probability, sharpened below 1; 0 always takes the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With a temperature: draw among the likeliest tokens that make up this probability."""

    def __post_init__(self) -> None:
        if self.top_p != 1 and not self.temperature:
            raise ValueError(
                "top_p does nothing without a temperature: set temperature above 0, or leave top_p out"
            )
        if self.length_penalty != 1 and self.num_beams == 1:
            raise ValueError(
                "length_penalty does nothing without beams: set num_beams above 1, or leave it out"
            )

    def options(self) -> dict[str, Any]:
        """Return the fields of transformers' GenerationConfig; what a checkpoint brings for the
        same choices is replaced.
        """
        beams: dict[str, Any] = {"num_beams": self.num_beams, "length_penalty": self.length_penalty}
        if self.num_beams == 1:
            beams["early_stopping"] = False
        if self.temperature:
            drawn: dict[str, Any] = {
                "do_sample": True,
                "temperature": self.temperature,
                "top_p": self.top_p,
            }
        else:
            drawn = {
                "do_sample": False,
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": 50,
            }  # transformers' own: no warning
        lengths = {"max_new_tokens": self.max_new_tokens, "min_length": 0}
        return {**lengths, "no_repeat_ngram_size": self.no_repeat_ngram_size, **beams, **drawn}
