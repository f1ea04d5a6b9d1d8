"""The sections that every recipe's config is made of. Imports nothing heavy, so that `--help` is
quick.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from peftkit.config.keys import section


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
