"""Samples that are generated: handwritten digits of scikit-learn, whistled notes, number words."""

import io
import itertools
import random
import wave
from pathlib import Path
from typing import Any

from peftkit.data.samples.phrases import phrases
from peftkit.data.samples.rows import Media, Row, Splits, split_rows
from peftkit.errors import DataError

SAMPLE_RATE = 16_000
NOTES = ("low", "middle", "high", "rising", "falling", "trill")
_PITCHES = {  # Hz at the start and at the end of a note
    "low": (300, 300),
    "middle": (600, 600),
    "high": (1200, 1200),
    "rising": (400, 900),
    "falling": (900, 400),
}
_CLIPS = 1800


def digits(root: Path) -> Splits:
    """Return scikit-learn's digits (UCI, optical recognition) as grey PNG files of 8 x 8 pixels."""
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as problem:
        raise DataError(
            f"sample:digits needs scikit-learn and Pillow ({problem}); pip install them"
        ) from problem
    found = load_digits()
    rows: list[Row] = []
    for number, (pixels, label) in enumerate(zip(found.images, found.target, strict=True)):
        grey = (pixels * (255 / 16)).round().astype("uint8")  # 16 is white
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "PNG")
        rows.append({"image": Media(f"{number:04}.png", buffer.getvalue()), "label": str(label)})
    return split_rows(rows, 1200, 200)


def tones(root: Path) -> Splits:
    """Return clips of two to five notes, as WAV files of 16 kHz and 16 bits.

    No sequence of notes occurs twice. A clip lasts three seconds at most.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    short = [*itertools.product(NOTES, repeat=2), *itertools.product(NOTES, repeat=3)]
    long = [*itertools.product(NOTES, repeat=4), *itertools.product(NOTES, repeat=5)]
    chosen = [*short, *random.Random(0).sample(long, _CLIPS - len(short))]
    rows: list[Row] = []
    for number, notes in enumerate(chosen):
        clip = Media(f"{number:04}.wav", _encode_wav(_whistle(notes, generator)))
        rows.append({"audio": clip, "text": " ".join(notes)})
    return split_rows(rows, 1500, 100)


def numbers(root: Path) -> Splits:
    """Return English numbers, clock times and dates with their German. No phrase occurs twice."""
    rows: list[Row] = []
    for english, german in phrases(8800):
        rows.append({"source": english, "target": german})
    return split_rows(rows, 8000, 300)


def _whistle(notes: tuple[str, ...], generator: Any) -> Any:
    """Return a clip (samples,) of values from -1 to 1.

    Each note has its own pitch, length and loudness. There is noise, and silence between notes.
    """
    import numpy as np

    tempo = generator.uniform(0.8, 1.2)
    tuning = generator.uniform(0.93, 1.07)
    pieces = [np.zeros(int(SAMPLE_RATE * generator.uniform(0.05, 0.15)))]
    for note in notes:
        duration = tempo * generator.uniform(0.28, 0.38)
        jitter = tuning * generator.uniform(0.96, 1.04)
        pieces.append(generator.uniform(0.5, 1.0) * _note(note, duration, jitter))
        pieces.append(np.zeros(int(SAMPLE_RATE * tempo * generator.uniform(0.05, 0.09))))
    clip = np.concatenate(pieces) * generator.uniform(0.1, 0.8)
    clip += generator.normal(0, generator.uniform(0.001, 0.02), len(clip))
    return np.clip(clip[: 3 * SAMPLE_RATE], -1, 1)


def _note(note: str, duration: float, jitter: float) -> Any:
    """Return one note (samples,): a sine that glides from its first pitch to its last."""
    import numpy as np

    time = np.arange(int(SAMPLE_RATE * duration)) / SAMPLE_RATE  # [samples], in seconds
    if note == "trill":
        pitch = np.where((time * 24).astype(int) % 2 == 0, 600.0, 800.0)
    else:
        first, last = _PITCHES[note]
        pitch = first * (last / first) ** (time / duration)
    fade = np.minimum(1, np.minimum(time, duration - time) / 0.015)
    phase = 2 * np.pi * np.cumsum(pitch * jitter) / SAMPLE_RATE  # the integral of the pitch
    return fade * np.sin(phase)


def _encode_wav(samples: Any) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
