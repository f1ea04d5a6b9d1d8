"""JSON files: an object on each line, a list of objects, or an object that holds one list.

The text of each object is kept as it is written, and parsed when its row is asked for.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.arrow_files import count_read
from peftkit.data.data_file import DataFile
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError

CONTAINERS = ("data", "rows", "examples", "instances", "records", "items")
"""The names of the list of rows in a file that is one object."""

_BATCH_CHARACTERS = 2**20  # of JSON in one Arrow batch


def read_json_lines(file: DataFile) -> Iterator[Any]:
    """Yield Arrow batches of the texts of a file's objects, one on each line.

    A file that begins with "[" is read by `read_json`. Empty lines are left out.
    """
    with file.reading(), file.text() as lines:
        is_list = lines.read(4096).lstrip()[:1] == "["
    yield from to_batches(_values(file) if is_list else _lines(file))


def read_json(file: DataFile) -> Iterator[Any]:
    """Yield Arrow batches of the texts of a file's objects: see the top of this module."""
    yield from to_batches(_values(file))


def to_batches(texts: Iterable[tuple[int, str]]) -> Iterator[Any]:
    """Yield Arrow batches of JSON texts and the number of each: ``json``, ``number``."""
    batch: list[bytes] = []
    numbers: list[int] = []
    size = 0
    for number, text in texts:
        batch.append(text.encode())
        numbers.append(number)
        size += len(text)
        if size > _BATCH_CHARACTERS:
            yield _to_batch(batch, numbers)
            batch, numbers, size = [], [], 0
    if batch:
        yield _to_batch(batch, numbers)


def _to_batch(texts: Sequence[bytes], numbers: Sequence[int]) -> Any:
    """Return a batch of Arrow, made of its buffers: of lists, Arrow would import pandas first."""
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    json_texts = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    places = pa.py_buffer(np.array(numbers, np.int32))
    number = pa.Array.from_buffers(pa.int32(), len(numbers), [None, places])
    return pa.record_batch([json_texts, number], names=["json", "number"])


def json_rows(file: DataFile, table: Any, noun: str = "row") -> Rows:
    """Return the rows of a table that `to_batches` made."""
    texts, numbers = table.column("json"), table.column("number")
    path, digest = file.path, file.digest  # and not the bytes of a small file

    def read(number: int) -> Row:
        count_read()
        value = _parse(path, texts[number].as_py(), numbers[number].as_py())
        if not isinstance(value, dict):
            raise DataError(f"cannot read {where(number)}: {value!r:.80} is not an object")
        return value

    def where(number: int) -> str:
        return f"{path}, {noun} {numbers[number]}"

    return Rows(read, len(table), where, lambda: digest)


def _lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """Yield each line that is not empty, and its number."""
    with file.reading(), file.text() as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                yield number, line.rstrip("\r\n")


def _values(file: DataFile) -> Iterator[tuple[int, str]]:
    """Yield each object of a file that is parsed as a whole, and its place among them."""
    with file.reading(), file.text() as lines:
        text = lines.read()
    start = _skip_space(text, 0)
    if text[start : start + 1] != "[":
        value, end = _decode(file.path, text, start)
        if _skip_space(text, end) == len(text):
            yield from enumerate(_only_list(value, text), 1)
            return
    yield from enumerate(_spans(file, text, start), 1)


def _only_list(value: Any, text: str) -> list[str]:
    """Return the texts of the rows in a file that holds one value."""
    for name in CONTAINERS:
        if isinstance(value, dict) and isinstance(value.get(name), list):
            return [json.dumps(entry) for entry in value[name]]
    return [text.strip()]


def _spans(file: DataFile, text: str, start: int) -> Iterator[str]:
    """Yield the texts of the entries of a list, or of values that follow each other."""
    is_list = text[start : start + 1] == "["
    place = _skip_space(text, start + is_list)
    while place < len(text) and not (is_list and text[place] == "]"):
        _, end = _decode(file.path, text, place)
        yield text[place:end]
        place = _skip_space(text, end)
        if is_list and text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif is_list and text[place : place + 1] != "]":
            problem = json.JSONDecodeError("Expecting ',' or ']'", text, place)
            raise DataError(f"cannot read {file.path}, line {problem.lineno}: {problem.msg}")
    if is_list:
        _check_end(file, text, place)


def _check_end(file: DataFile, text: str, place: int) -> None:
    """Check that a list ends, and that nothing follows it."""
    rest = text[place : place + 1]
    if rest != "]" or _skip_space(text, place + 1) < len(text):
        line = text.count("\n", 0, place) + 1
        what = "something follows the list" if rest else "the list does not end"
        raise DataError(f"cannot read {file.path}, line {line}: {what}")


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _parse(path: Path, text: str, line: int) -> Any:
    value, end = _decode(path, text, _skip_space(text, 0), line)
    if _skip_space(text, end) < len(text):
        raise DataError(f"cannot read {path}, line {line}: more follows the first value")
    return value


def _decode(path: Path, text: str, start: int, line: int = 1) -> tuple[Any, int]:
    """Parse the value that begins at `start`; return it, and where it ends.

    Args:
        path: The file, for messages.
        text: The text, which begins on line `line` of the file.
        start: Where the value begins.
        line: A number from 1.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as problem:
        line += problem.lineno - 1
        message = problem.msg
    except RecursionError:
        line += text.count("\n", 0, start)
        message = "its lists and objects are nested too deeply"
    except ValueError as problem:  # from the functions that `_DECODER` calls
        line += text.count("\n", 0, start)
        message = str(problem)
    raise DataError(f"cannot read {path}, line {line}: {message}")


def _to_object(pairs: list[tuple[str, Any]]) -> Row:
    """Return the object that has these keys.

    Raises:
        ValueError: it has a key twice, of which one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"an object has the key {key!r} twice")
            seen.add(key)
    return found


def _to_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40} is too large for a number")
    return value


def _to_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a number has {len(text)} digits, which is too many") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null for a value that is missing")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_to_object,
    parse_float=_to_float,
    parse_int=_to_int,
    parse_constant=_refuse_constant,
)
