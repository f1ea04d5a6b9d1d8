"""A tiny random model of every architecture that transformers' auto classes know, with inputs.

``specimen = zoo.build("causal-lm", "jamba")``, then ``specimen.model(**specimen.batch(labels=True,
padding="left")).loss``.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from benchmarks import zoo_inputs, zoo_shapes

TASKS = {
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "speech-seq2seq": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}


class Unbuildable(Exception):  # noqa: N818 -- an outcome, not a mistake
    """The base model cannot be built or trained here; the message says why in one line."""


class Pair(NamedTuple):
    """A task and a type of model that transformers defines for it."""

    task: str
    model_type: str


@dataclass
class Specimen:
    """A tiny model in evaluation mode, float32, with seeded weights, and inputs for it."""

    task: str
    model_type: str
    model: PreTrainedModel

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return self.model.config

    def batch(self, labels: bool = True, padding: str = "none", seed: int = 0) -> dict[str, Tensor]:
        """Return two rows of inputs.

        Text has seven to nine tokens, padded on the side that `padding` names.
        """
        return zoo_inputs.batch(self.task, self.model_type, self.model, labels, padding, seed)


def pairs() -> list[Pair]:
    """Return every (task, type) that transformers defines, in a fixed order."""
    return [
        Pair(task, model_type) for task, mapping in TASKS.items() for model_type in sorted(mapping)
    ]


def build(task: str, model_type: str, seed: int = 0) -> Specimen:
    """Build the model of a pair; the same seed gives the same weights.

    Raises:
        Unbuildable: the base model cannot be built or trained here.
    """
    if reason := zoo_shapes.UNBUILDABLE.get(model_type):
        raise Unbuildable(reason)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            model_class = _model_class(task, model_type)
            config = configuration(task, model_type, model_class)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = model_class(config).float().eval()
        except Exception as problem:
            raise Unbuildable(
                f"{type(problem).__name__}: {str(problem).strip().splitlines()[0]}"[:200]
            ) from problem
    _make_every_weight_count(model, seed)
    return Specimen(task, model_type, model)


def _model_class(task: str, model_type: str) -> type[PreTrainedModel]:
    name = TASKS[task][model_type]
    return getattr(transformers, name if isinstance(name, str) else name[0])


def configuration(
    task: str, model_type: str, model_class: type[PreTrainedModel]
) -> PreTrainedConfig:
    """Return the tiny configuration that the model class is built from."""
    config_class = CONFIG_MAPPING[model_type]
    config = zoo_shapes.shrunk(config_class)
    if not isinstance(config, model_class.config_class):  # the text part of a type of many parts
        parts = [
            part for part in vars(config).values() if isinstance(part, model_class.config_class)
        ]
        config = parts[0] if parts else config
    if task.endswith("classification"):
        config.num_labels = 3
    if (
        task == "causal-lm"
        and hasattr(config, "is_decoder")
        and not getattr(config, "is_encoder_decoder", False)
    ):
        config.is_decoder = True
    if getattr(config, "is_encoder_decoder", False):
        for name in ("pad_token_id", "decoder_start_token_id"):
            if getattr(config, name, None) is None:
                setattr(config, name, 0)
    return config


def _make_every_weight_count(model: PreTrainedModel, seed: int) -> None:
    """Move parameters that start constant or near zero: the output must depend on them all."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            value = parameter.float()
            if value.numel() < 1 or not parameter.is_floating_point():
                continue
            constant = bool((value == value.flatten()[0]).all())
            level = float(value.flatten()[0])
            if constant and level == 0:
                parameter.copy_(0.1 * noise(value))
            elif constant:
                parameter.copy_((level if abs(level) > 0.05 else 0.5) * (1 + 0.1 * noise(value)))
            elif value.dim() > 1:
                scale = (value.numel() / value.shape[0]) ** -0.5 / float(value.std())
                parameter.mul_(scale if scale > 2 else 1)
