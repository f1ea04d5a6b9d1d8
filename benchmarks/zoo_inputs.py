"""Inputs for a tiny model of any type: token ids, masks, images, sound, boxes."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

LENGTH, LABELS, TARGETS = 8, 3, 6


def batch(
    task: str, model_type: str, model: PreTrainedModel, labels: bool, padding: str, seed: int
) -> dict[str, Tensor]:
    """Return two rows of inputs for `model`."""
    generator = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(model.forward).parameters
    config: Any = model.config
    if task == "image-classification":
        inputs = _images(model_type, config, generator)
        return inputs | ({"labels": torch.tensor([0, 2])} if labels else {})
    inputs = _text(task, config, padding, generator)
    sound = SOUNDS.get(model_type)
    if sound and not (config.is_encoder_decoder and task == "seq2seq-lm"):
        inputs = _with_sound(sound, inputs, accepted, config, generator)
    for name, make in _EXTRA_TEXT.items():
        if name in accepted and (name != "pixel_values" or model_type in NEEDS_PIXELS):
            inputs[name] = make(inputs["input_ids"], config, generator)
    if model_type in CODEBOOKS:
        return _codes(model_type, inputs, labels, generator)
    targets = _labels(task, config, inputs, generator)
    if labels:
        inputs["labels"] = targets
    if (
        (not labels or model_type == "fsmt")
        and task in ("seq2seq-lm", "speech-seq2seq")
        and "decoder_input_ids" in accepted
    ):
        inputs["decoder_input_ids"] = targets.clamp(min=0)
    return inputs


def _text(task: str, config: Any, padding: str, generator: torch.Generator) -> dict[str, Tensor]:
    pad = getattr(config, "pad_token_id", None) or 0
    ids = torch.randint(12, _largest(config), (2, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if padding != "none":
        side = slice(0, 2) if padding == "left" else slice(-2, None)
        mask[1, side] = 0
        ids[1, side] = pad
    if task == "sequence-classification" and getattr(config, "is_encoder_decoder", False):
        last = torch.tensor([LENGTH - 1, LENGTH - (3 if padding == "right" else 1)])
        ids[torch.arange(2), last] = (
            config.eos_token_id
        )  # these classify from the end-of-sequence token
    return {"input_ids": ids, "attention_mask": mask}


def _largest(config: Any) -> int:
    return min(90, getattr(config, "vocab_size", 90))


def _labels(
    task: str, config: Any, inputs: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    if task == "speech-seq2seq" and config.is_encoder_decoder:
        return torch.randint(12, _largest(config), (2, TARGETS), generator=generator)
    ids, hidden = inputs["input_ids"], inputs["attention_mask"] == 0
    if task == "sequence-classification":
        return torch.tensor([0, 2])
    if task == "token-classification":
        return torch.randint(0, LABELS, ids.shape, generator=generator).masked_fill(hidden, -100)
    if task == "causal-lm" or not config.is_encoder_decoder:
        return ids.masked_fill(hidden, -100)
    return torch.randint(12, _largest(config), (2, TARGETS), generator=generator)


def _images(model_type: str, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    vision = getattr(config, "vision_config", config)
    if model_type == "siglip2":
        patches = torch.randn(2, vision.num_patches, 3 * vision.patch_size**2, generator=generator)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
        }
    if model_type == "imagegpt":
        return {"input_ids": torch.randint(0, 64, (2, 16), generator=generator)}
    size = getattr(vision, "image_size", 32)
    side = size if isinstance(size, int) else size[0]
    return {"pixel_values": torch.randn(2, 3, side, side, generator=generator)}


def _pixels(ids: Tensor, config: Any, generator: torch.Generator) -> Tensor:
    return _images("", config, generator)["pixel_values"]


NEEDS_PIXELS = {"git"}


class Sound(NamedTuple):
    """How a type hears: the input's name, a row's shape, its mask, the tokens that it fills."""

    name: str
    shape: tuple[int, ...]
    mask: str = ""
    frames: int = 0
    tokens: int = 0


_MEL = 16
_FEATURES, _WAVE, _MASK = "input_features", "input_values", "input_features_mask"
SOUNDS = {
    "audioflamingo3": Sound(_FEATURES, (_MEL, 16), _MASK, 16, 4),
    "canary": Sound(_FEATURES, (64, _MEL), "attention_mask", 64),
    "cohere_asr": Sound(_FEATURES, (64, _MEL), "attention_mask", 64),
    "fun_asr_nano": Sound(_FEATURES, (4, 7 * _MEL), _MASK, 4, 4),
    "glmasr": Sound(_FEATURES, (_MEL, 32), _MASK, 32, 4),
    "granite_speech": Sound(_FEATURES, (15, _MEL), tokens=3),
    "granite_speech_plus": Sound(_FEATURES, (15, _MEL), tokens=3),
    "moonshine": Sound(_WAVE, (4000,)),
    "moonshine_streaming": Sound(_WAVE, (1600,)),
    "moss_transcribe_diarize": Sound(_FEATURES, (_MEL, 32), _MASK, 32, 4),
    "musicflamingo": Sound(_FEATURES, (_MEL, 16), _MASK, 16, 4),
    "pop2piano": Sound(_FEATURES, (LENGTH, 32), "attention_mask", LENGTH),
    "qwen2_audio": Sound(_FEATURES, (_MEL, 16), "feature_attention_mask", 16, 4),
    "qwen3_asr": Sound(_FEATURES, (_MEL, 100), _MASK, 100, 13),
    "seamless_m4t": Sound(_FEATURES, (16, _MEL), "attention_mask", 16),
    "seamless_m4t_v2": Sound(_FEATURES, (16, _MEL), "attention_mask", 16),
    "speech-encoder-decoder": Sound(_WAVE, (400,)),
    "speech_to_text": Sound(_FEATURES, (32, _MEL), "attention_mask", 32),
    "speecht5": Sound(_WAVE, (400,)),
    "vibevoice": Sound(_WAVE, (1, 16), "padding_mask", 16, 4),
    "vibevoice_asr": Sound(_WAVE, (1, 16), "padding_mask", 16, 4),
    "voxtral": Sound(_FEATURES, (_MEL, 32), tokens=4),
    "voxtral_realtime": Sound(_FEATURES, (_MEL, 8 * LENGTH)),
    "whisper": Sound(_FEATURES, (_MEL, 32)),
}


def _with_sound(
    sound: Sound, text: dict[str, Tensor], accepted: Any, config: Any, generator: torch.Generator
) -> dict[str, Any]:
    """Return the sound, with the text whose placeholders it fills where the type reads both."""
    inputs: dict[str, Any] = {sound.name: torch.randn(2, *sound.shape, generator=generator)}
    if sound.mask:
        inputs[sound.mask] = torch.ones(2, sound.frames, dtype=torch.long)
    if "sample" in accepted:
        inputs["sample"] = False  # these add noise to what they hear
    if config.is_encoder_decoder:
        return inputs
    token: Any = getattr(config, "audio_token_id", None) or getattr(config, "audio_token_index", 0)
    for name, value in (("input_ids", token), ("attention_mask", 1)):
        heard = torch.full((2, sound.tokens), value)
        inputs[name] = torch.cat([text[name][:, :3], heard, text[name][:, 3:]], dim=1)
    return inputs


CODEBOOKS = {"dia": 2, "kyutai_speech_to_text": 3, "musicgen": 4, "musicgen_melody": 4}


def _codes(
    model_type: str, text: dict[str, Tensor], labels: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the codes of a model of sound, which has several for each place."""
    codebooks = CODEBOOKS[model_type]
    codes = torch.randint(12, 90, (2, LENGTH, codebooks), generator=generator)
    rows = codes.transpose(1, 2).reshape(-1, LENGTH)  # the codebooks of a row, one below the other
    if model_type == "dia":
        inputs, targets = text | {"decoder_input_ids": codes}, rows
    elif model_type == "kyutai_speech_to_text":  # the first of them is the text
        inputs, targets = text | {"input_ids": codes}, codes[..., 0]
    else:
        inputs, targets = text | {"input_ids": rows}, codes
    return inputs | ({"labels": targets} if labels else {})


def _boxes(ids: Tensor, config: Any, generator: torch.Generator) -> Tensor:
    corners = torch.randint(0, 15, (*ids.shape, 2), generator=generator)
    return torch.cat(
        [corners, corners + torch.randint(1, 15, corners.shape, generator=generator)], dim=-1
    )


_EXTRA_TEXT = {"bbox": _boxes, "pixel_values": _pixels}
