"""Samples that are made on the spot: pictures from scikit-learn, notes and number words."""

import io
import itertools
import random
import wave
from pathlib import Path
from typing import Any

from peftkit.data.samples.rows import Media, Row, Splits, split_rows
from peftkit.errors import DataError

SAMPLE_RATE = 16_000
NOTES = ("low", "middle", "high", "rising", "falling", "trill")
_PITCHES = {
    "low": (300, 300),
    "middle": (600, 600),
    "high": (1200, 1200),
    "rising": (400, 900),
    "falling": (900, 400),
}


def digits(root: Path) -> Splits:
    """The digits of the UCI optical recognition set that scikit-learn carries, as PNG files of 8 x
    8 grey pixels.
    """
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
        buffer = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(buffer, "PNG")
        rows.append({"image": Media(f"{number:04}.png", buffer.getvalue()), "label": str(label)})
    return split_rows(rows, 1200, 200)


def tones(root: Path) -> Splits:
    """Two to five notes a clip, no sequence of notes twice: WAV files of 16 kHz, 16 bits, at most
    three seconds.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    short = [notes for length in (2, 3) for notes in itertools.product(NOTES, repeat=length)]
    long = [notes for length in (4, 5) for notes in itertools.product(NOTES, repeat=length)]
    chosen = [*short, *random.Random(0).sample(long, 1800 - len(short))]
    rows: list[Row] = [
        {
            "audio": Media(f"{number:04}.wav", _wav(_melody(notes, generator))),
            "text": " ".join(notes),
        }
        for number, notes in enumerate(chosen)
    ]
    return split_rows(rows, 1500, 100)


def numbers(root: Path) -> Splits:
    """English phrases of numbers, clock times and dates with their German; no phrase is in two
    splits.
    """
    from peftkit.data.samples.phrases import phrases

    return split_rows(
        [{"source": english, "target": german} for english, german in phrases(8800)], 8000, 300
    )


def _melody(notes: tuple[str, ...], generator: Any) -> Any:
    """The samples of a clip, from -1 to 1: each note at its own pitch, length and loudness, in
    noise.
    """
    import numpy as np

    tempo, tuning = generator.uniform(0.8, 1.2), generator.uniform(0.93, 1.07)
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
    import numpy as np

    time = np.arange(int(SAMPLE_RATE * duration)) / SAMPLE_RATE
    if note == "trill":
        pitch = np.where((time * 24).astype(int) % 2 == 0, 600.0, 800.0)
    else:
        first, last = _PITCHES[note]
        pitch = first * (last / first) ** (time / duration)
    fade = np.minimum(1, np.minimum(time, duration - time) / 0.015)
    return fade * np.sin(2 * np.pi * np.cumsum(pitch * jitter) / SAMPLE_RATE)


def _wav(samples: Any) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
