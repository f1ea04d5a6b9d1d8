"""Rows that name sound files, and the sounds at a model's sampling rate."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from peftkit.data.row_files import RowSource
from peftkit.data.rows import Rows
from peftkit.data.table_rows import Columns, read_file_rows
from peftkit.errors import DataError


def read_audio_rows(
    source: RowSource, columns: Columns, renamed: Mapping[str, str], encoding: str | None = None
) -> Rows:
    """Return rows with ``audio``, an absolute path, and the other columns.

    Args:
        source: Where the rows are, as `peftkit.data.row_files.read_rows` takes it.
        columns: The columns that every row must have, and what reads their values.
        renamed: The source's name for each column that it calls otherwise.
        encoding: The encoding of text files, as `read_rows` takes it.

    Raises:
        DataError: a column is missing. Reading a row raises it too, where the row names a file that
            does not exist.
    """
    return read_file_rows(source, columns, renamed, encoding, file_column="audio")


def read_waveform(path: str, rate: int) -> Any:
    """Return a sound file as one channel at a sampling rate.

    Args:
        path: A file that the soundfile library reads, of any rate and number of channels.
        rate: Samples per second.

    Returns:
        A float32 array (samples,) of values from -1 to 1.

    Raises:
        DataError: the file is not a sound file, or is empty.
    """
    import soundfile
    from scipy.signal import resample_poly

    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as problem:
        raise DataError(f"{path} cannot be read as sound: {problem}") from problem
    if not len(samples):
        raise DataError(f"{path} holds no sound")
    mono = samples.mean(1)  # [samples, channels] -> [samples]
    ratio = Fraction(rate, file_rate)
    return resample_poly(mono, ratio.numerator, ratio.denominator).astype("float32")


def read_spectrograms(extractor: Any, sounds: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the spectrograms of the rows' ``audio`` files, as the feature extractor makes them.

    Returns:
        ``input_features``: (sounds, mel bins, frames).
    """
    rate = extractor.sampling_rate
    waves = [read_waveform(sound["audio"], rate) for sound in sounds]
    features = extractor(waves, sampling_rate=rate, return_tensors="pt")
    return {"input_features": features["input_features"]}
