"""What is shown of what a model reads: a text, a picture or a sound."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit.data.audio import read_waveform
from peftkit.data.preview.pictures import picture_of_pixels, picture_of_spectrogram, wave_of
from peftkit.data.preview.shown import Section
from peftkit.data.preview.texts import read_section


def input_section(
    name: str,
    features: Mapping[str, Any],
    texts: Sequence[str],
    processor: Any,
    pad: Callable[[Sequence[Any]], Mapping[str, Tensor]],
    max_length: int | None,
) -> Section:
    """Return the section of one example's input.

    Args:
        name: What it is called.
        features: The tokens of the texts, or the name of a file.
        texts: The texts, or the path of the file.
        processor: The tokenizer, or what takes its place for pictures and sounds.
        pad: Makes a batch of features; it reads files.
        max_length: The most tokens of a text.
    """
    if "input_ids" in features:
        return read_section(name, features["input_ids"], texts, processor, max_length)
    batch = pad([features])
    file = Path(texts[0])
    if "pixel_values" in batch:
        picture = picture_of_pixels(batch["pixel_values"][0], processor, file.name)
        return Section(name, picture=picture)
    extractor = processor.extractor
    samples = read_waveform(str(file), extractor.sampling_rate)
    most = getattr(extractor, "n_samples", len(samples))  # Whisper's window; others have none
    window = most / extractor.sampling_rate  # seconds
    wave = wave_of(samples, extractor.sampling_rate, window)
    frames = batch["input_features"][0]  # [mel bins, frames]
    heard = max(1, round(frames.shape[1] * wave.read_seconds / window))  # the rest is padding
    return Section(name, picture=picture_of_spectrogram(frames[:, :heard], file.name), wave=wave)
