"""Sounds by their paths: rows of a data file, read and brought to a model's sampling rate."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from peftkit.data.row_files import Row
from peftkit.data.table_rows import ColumnTypes, read_table_rows, resolve_files
from peftkit.errors import DataError


def read_audio_rows(path: str, columns: ColumnTypes, renamed: Mapping[str, str]) -> list[Row]:
    """Return rows with ``audio``, an absolute path, and ``text``.

    Raises:
        DataError: a row names a file that does not exist.
    """
    return resolve_files(read_table_rows(path, columns, renamed), "audio", path)


def read_waveform(path: str, rate: int) -> Any:
    """Return a sound file as one channel of float32 samples from -1 to 1, at `rate` samples a
    second: an array (samples,).

    Raises:
        DataError: the file is no sound, or empty.
    """
    import soundfile
    from scipy.signal import resample_poly

    try:
        samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as problem:
        raise DataError(f"{path} cannot be read as sound: {problem}") from problem
    if not len(samples):
        raise DataError(f"{path} holds no sound")
    ratio = Fraction(rate, own_rate)
    return resample_poly(samples.mean(1), ratio.numerator, ratio.denominator).astype("float32")


def read_spectrograms(extractor: Any, sounds: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return ``input_features`` (sounds, mel bins, frames) of the files at the rows' ``audio``."""
    rate = extractor.sampling_rate
    waves = [read_waveform(sound["audio"], rate) for sound in sounds]
    return {
        "input_features": extractor(waves, sampling_rate=rate, return_tensors="pt")[
            "input_features"
        ]
    }
