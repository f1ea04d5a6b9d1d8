"""Pictures of what a model sees and hears: its pixels, and its spectrogram."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from peftkit.data.preview.shown import Picture, Wave

_LARGEST_SIDE = 224  # of a picture, in pixels
_SPECTROGRAM_WIDTH = 480
_STRETCHES = 240  # of a sound


def picture_of_pixels(pixels: Tensor, processor: Any, description: str) -> Picture:
    """Return the picture that a model sees, from its normalised pixels.

    Args:
        pixels: (channels, height, width), as an image processor makes them.
        processor: That image processor; it says how pixels were normalised.
        description: What the picture is.
    """
    values = pixels.float()
    if getattr(processor, "do_normalize", False):
        deviation = _by_channel(processor.image_std, values)
        values = values * deviation + _by_channel(processor.image_mean, values)
    brightest = 1 if getattr(processor, "do_rescale", True) else 255
    levels = (values * 255 / brightest).round().clamp(0, 255).byte()  # [channels, height, width]
    array = levels.permute(1, 2, 0).numpy()
    _, height, width = pixels.shape
    return Picture(_png(array), f"{description}, as {width} x {height} pixels")


def _by_channel(values: Sequence[float] | float, pixels: Tensor) -> Tensor:
    """Return a mean or a deviation as (channels, 1, 1)."""
    return pixels.new_tensor(values).reshape(-1, 1, 1)


def picture_of_spectrogram(features: Tensor, description: str) -> Picture:
    """Return a spectrogram, low sounds at the bottom.

    Args:
        features: (mel bins, frames).
        description: What the sound is.
    """
    from PIL import Image, ImageOps

    values = features.float()
    low, high = float(values.min()), float(values.max())
    levels = ((values - low) / max(high - low, 1e-6) * 255).round().byte().numpy()[::-1]
    grey = Image.fromarray(np.ascontiguousarray(levels))
    grey = grey.resize((_SPECTROGRAM_WIDTH, 80))
    colours = {"black": "#0b1d3a", "mid": "#0072b2", "white": "#fff1c9"}
    return Picture(_png(np.asarray(ImageOps.colorize(grey, **colours))), description)


def wave_of(samples: Any, rate: int, read_seconds: float) -> Wave:
    """Return the outline of a sound.

    Args:
        samples: (samples,), from -1 to 1.
        rate: Samples a second.
        read_seconds: How much of it a model hears, if it is that long.
    """
    stretches = np.array_split(np.asarray(samples, np.float32), min(_STRETCHES, len(samples)))
    lows = tuple(float(stretch.min()) for stretch in stretches)
    highs = tuple(float(stretch.max()) for stretch in stretches)
    seconds = len(samples) / rate
    return Wave(lows, highs, seconds, min(seconds, read_seconds))


def _png(array: Any) -> bytes:
    """Return an array (height, width, channels) of bytes as a small PNG."""
    from PIL import Image

    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((_SPECTROGRAM_WIDTH, _LARGEST_SIDE))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
