"""The sections of a recipe's config for the model, the data and the generation of text.

It imports nothing heavy, so that `--help` is quick.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
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
    """A Hub id, a directory, a .gguf file, a config.json (for random weights), or
    package:NAME/FILE for a file in an installed package.
    """
    quantization: Literal["int8", "nf4", "fp4"] | None = None
    """How linear layers are stored; null does not quantise them."""
    double_quantization: bool = True
    """Quantise the scales of 4-bit blocks too."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of the activations and of all weights that are not quantised; auto is a 16-bit one."""
    attention: str | None = None
    """The attention implementation, such as sdpa or eager; null lets transformers choose."""

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
    """What a training step saves in memory and time; the numbers are the same up to rounding."""

    layers: bool = True
    """LoRA and AdaLoRA keep no copy of their input for the backward pass."""
    loss: bool = True
    """A language model computes its logits and loss in chunks."""
    norms: bool = True
    """Norms keep only their input, and compute the rest again in the backward pass."""
    feed_forward: bool = True
    """Feed-forward layers keep only the outputs of their first layers."""
    weights: bool = False
    """Where blocks are checkpointed, dequantise 4-bit weights twice a step instead of three times;
    this keeps the 16-bit weights of one block.
    """


@section
class ReplaySettings:
    """Old rows to train on again beside the new ones, against forgetting."""

    train: str
    """The data file with the old rows."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of old rows among the rows of an epoch; they are drawn once, with the run's seed."""


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(f"{name!r} is no encoding, such as cp1252 or gb18030") from None
    return name


@section
class RowSettings:
    """Which rows to train on."""

    train: str | list[str]
    """Files (JSONL, JSON, CSV, TSV, Excel, Parquet, Arrow), a pattern such as data/*.jsonl, or a
    directory; hub:OWNER/NAME for a data set of the Hub, sample:NAME/SPLIT for a sample that peftkit
    fetches, or package:NAME/FILE for a file in an installed package. Where there are several splits
    or sheets, put :NAME after it.
    """
    evaluation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Held-out rows: files, as for train, or the share of the training rows to hold out; of each
    class, that share is held out, and rows with the same group stay together.
    """
    columns: dict[str, str] = field(default_factory=dict)
    """What the file calls the columns, such as {messages: conversation}."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None
    """The encoding of text files without a byte order mark, such as cp1252; null is UTF-8."""
    streaming: bool = False
    """Read the training rows forward, shuffled as far as a buffer of 10,000 reaches, and keep only
    those that train.max_steps needs: for data that does not fit on the disk.
    """
    skip_empty: bool = False
    """Leave out rows that hold nothing to learn from, and say which; false stops at the first."""
    shares: list[Annotated[float, Field(gt=0, lt=1)]] | None = None
    """Shares of the files of data.train among the rows of an epoch, in their order. An epoch has as
    many rows as the files together: a file with too many rows gives some of them, drawn once with
    the run's seed, and one with too few gives all of them several times.
    """
    replay: ReplaySettings | None = None
    """Rows of an earlier task to train on again."""
    retention: str | None = None
    """Held-out rows of an earlier task: the report says how much of it is forgotten."""
    lint: bool = True
    """Look for duplicates, overlap, odd labels and answers, and personal data in the rows when a
    run starts, and say what is found.
    """

    def __post_init__(self) -> None:
        if self.shares is None:
            return
        if self.streaming:
            raise ValueError(
                "shares needs all rows of each file, and streaming reads some: leave one out"
            )
        files = 1 if isinstance(self.train, str) else len(self.train)
        if files != len(self.shares) or files < 2:
            raise ValueError(
                f"shares has {len(self.shares)} numbers and train names {_count_files(files)}: "
                "name several files, and give each its share"
            )
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares adds up to {sum(self.shares):g}; it must add up to 1")


def _count_files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


@section
class OversamplingSettings:
    """How often rows of rare classes are learned."""

    oversample: Annotated[float, Field(gt=0, le=1)] | None = None
    """Repeat training rows of rare classes until each class has at least this share of the rows of
    the largest one; loss.class_weights: balanced counts the rows after that.
    """


def _label_texts(names: Any) -> Any:
    """Write labels as the texts that rows have for them: YAML reads 0 and true as other things."""
    if not isinstance(names, dict):
        return names
    texts = {}
    for label, name in names.items():
        is_number = isinstance(label, bool | int) or (isinstance(label, float) and label % 1 == 0)
        text = str(int(label)) if is_number else label
        texts[str(label).lower() if isinstance(label, bool) else text] = name
    return texts


def _check_names(names: dict[str, str]) -> dict[str, str]:
    for label, name in names.items():
        if names.get(name, name) != name:
            raise ValueError(f"{name!r} is the name of {label!r}, and has another name itself")
    return names


@section
class LabelSettings:
    """What the classes are called."""

    label_names: Annotated[
        dict[str, str], BeforeValidator(_label_texts), AfterValidator(_check_names)
    ] = field(default_factory=dict)
    """Names in place of labels or tags, such as {0: negative, 1: positive}; labels with the same
    name are one class.
    """


@section
class TextSettings(RowSettings):
    """Which rows to train on, and how much of each."""

    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest example, in tokens; longer ones are cut, and the run says how many."""


@section
class DataSettings(TextSettings):
    """Which dialogues, completions or texts to train on."""

    format: Literal["auto", "chat", "prompt-completion", "alpaca", "sharegpt", "text"] = "auto"
    """The format of the rows; auto finds it from the columns, and the run says which it is."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest example, in tokens; longer ones are cut, and the run says how many."""
    loss_on: Literal["assistant", "all"] | None = None
    """Train on the answers or on every token; null means the answers if there are any."""
    packing: bool | Literal["batch"] = False
    """Put several rows into one sequence, where they do not attend to each other: true fills
    sequences of max_length tokens; batch joins the rows of each micro-batch, which is the same step
    without padding.
    """
    system: str | None = None
    """The system message of dialogues that have none."""
    chat_template: str | None = None
    """The chat template, in place of the tokenizer's own: chatml, gemma, instruction, llama-3,
    mistral, qwen3, vicuna, zephyr, or a Jinja file. It is saved beside the adapter.
    """

    shots: NonNegativeInt = 0
    """Put so many training rows before each dialogue or prompt, as solved examples, in training and
    whenever the model is asked; they are drawn once, with the run's seed, and not learned.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots and self.format == "text":
            raise ValueError("shots is for dialogues and prompts, not for texts: leave it out")
        if self.shots and self.loss_on == "all":
            raise ValueError(
                "shots are not learned, and loss_on: all learns every token: leave one of them out"
            )
        if self.loss_on == "assistant" and self.format == "text":
            raise ValueError(
                "loss_on: assistant needs rows with answers; text rows have none, leave it out"
            )


@section
class GenerationSettings:
    """How the model generates text."""

    max_new_tokens: PositiveInt = 64
    """Longest text to generate, in tokens."""
    num_beams: PositiveInt = 1
    """Beams of the beam search; 1 is greedy search."""
    length_penalty: float = 1.0
    """With several beams, a value above 1 favours longer texts."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """Generate no sequence of this many tokens twice; 0 allows any."""
    temperature: NonNegativeFloat = 0.0
    """Above 0, draw tokens at random, the closer to the likeliest the lower it is; 0 takes the
    likeliest.
    """
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With a temperature, draw among the likeliest tokens that make up this probability."""

    def __post_init__(self) -> None:
        if self.top_p != 1 and not self.temperature:
            raise ValueError(
                "top_p does nothing without a temperature: set temperature above 0, or leave it out"
            )
        if self.length_penalty != 1 and self.num_beams == 1:
            raise ValueError(
                "length_penalty does nothing without beams: set num_beams above 1, or leave it out"
            )

    def options(self) -> dict[str, Any]:
        """Return fields of transformers' GenerationConfig, in place of those of a checkpoint."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "min_length": 0,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
        }
        if self.num_beams == 1:
            options["early_stopping"] = False
        if self.temperature:
            options |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        else:
            # The defaults of transformers, which warns about any other value of an unused field.
            options |= {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        return options
