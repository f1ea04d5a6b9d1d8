"""Training examples in Arrow files: made once by several processes, and memory-mapped by all.

An example is a dataclass. Its fields are lists of whole numbers, numbers, or a mapping of a
tokenizer's names to lists of whole numbers or to texts.
"""

import dataclasses
import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.arrow_files import count_read, let_go_of_pages, made_once, open_table
from peftkit.data.encoding_processes import in_processes
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError
from peftkit.files import read_json, write_json

Encode = Callable[[Sequence[Row], Counter[str]], Sequence[Sequence[Any]]]
"""Makes the examples of each of some rows, and counts what happened to the rows."""

_FEW_ROWS = 1000  # are encoded in no time, and kept in memory
_BATCH_ROWS = 256
_LENGTH = "length of the example"
_INSIDE = "."  # between the name of a mapping and a key of it


class StoredExamples(Sequence[Any]):
    """The examples in a directory of Arrow files. One is read each time it is asked for.

    Args:
        directory: The directory, as `encode_rows` makes it.
        kind: The class of the examples.

    Attributes:
        lengths: The length of each example in tokens, an array (examples,) of int32.
        largest_token: The largest of all ``input_ids``; -1 without any.
        digest: A digest of all that is learned from the examples.
        counts: What happened to the rows, by name.
    """

    def __init__(self, directory: Path, kind: type) -> None:
        self._kind = kind
        found = read_json(directory / "examples.json", DataError)
        self.digest: str = found["digest"]
        self.largest_token: int = found["largest_token"]
        self.counts: Counter[str] = Counter(found["counts"])
        self._parts = _open_parts(directory)
        lengths = [np.zeros(0, np.int32)]
        counts = []
        for part in self._parts:
            column = part.pop(_LENGTH)
            lengths += map(_numbers, column.chunks)
            counts.append(len(column))
        self.lengths = np.concatenate(lengths)
        self._ends = np.cumsum(counts).tolist()
        let_go_of_pages()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        count_read()
        number = range(len(self))[number]  # counts from the end, and raises an IndexError
        part = bisect_right(self._ends, number)
        place = number - (self._ends[part - 1] if part else 0)
        record = {}
        for name, column in self._parts[part].items():
            value = column[place]
            is_list = getattr(value, "values", None) is not None
            record[name] = _numbers(value.values).tolist() if is_list else value.as_py()
        return _from_record(record, self._kind)


def encode_rows(
    rows: Rows, encode: Encode, kind: type, key: Callable[[], str], name: str
) -> tuple[Sequence[Any], Counter[str]]:
    """Return the examples of rows, and counts of what happened to the rows.

    Few rows are encoded in memory. Many are encoded by several processes into Arrow files in the
    cache, where a later run finds them.

    Args:
        rows: The rows.
        encode: Makes their examples.
        kind: The class of the examples.
        key: Says all that the examples depend on, beside the rows' content.
        name: What the progress bar calls the rows.

    Raises:
        DataError: a row cannot be encoded. The message names the first one.
    """
    counts: Counter[str] = Counter()
    if len(rows) <= _FEW_ROWS:
        examples: list[Any] = []
        for batch in _encoded(rows, range(len(rows)), encode, counts):
            examples += batch
        return examples, counts

    def write(numbers: range, file: Path, advance: Callable[[int], None]) -> dict[str, int]:
        return _write(rows, numbers, encode, file, advance)

    def make(directory: Path) -> None:
        for counted in in_processes(write, len(rows), directory, name):
            counts.update(counted)
        write_json(directory / "examples.json", {"counts": counts} | _describe(directory))

    digest = hashlib.sha256(f"{rows.digest} {key()}".encode()).hexdigest()
    stored = StoredExamples(made_once(f"examples-{digest[:32]}", make), kind)
    return stored, stored.counts


def _encoded(
    rows: Rows, numbers: range, encode: Encode, counts: Counter[str]
) -> Iterator[list[Any]]:
    """Yield the examples of one batch of rows after the other."""
    for start in range(0, len(numbers), _BATCH_ROWS):
        batch = numbers[start : start + _BATCH_ROWS]
        found = [rows[number] for number in batch]
        try:
            encoded = encode(found, counts)
        except DataError:
            _name_the_row(rows, batch, encode)
            raise
        examples: list[Any] = []
        for of_row in encoded:
            examples += of_row
        yield examples


def _name_the_row(rows: Rows, batch: range, encode: Encode) -> None:
    """Raise the error of the first row of a batch that cannot be encoded, with its place."""
    for number in batch:
        try:
            encode([rows[number]], Counter())
        except DataError as problem:
            raise type(problem)(f"{rows.where(number)}: {problem}") from None


def _write(
    rows: Rows, numbers: range, encode: Encode, file: Path, advance: Callable[[int], None]
) -> dict[str, int]:
    """Write the examples of some rows to an Arrow file, and return what happened to the rows."""
    import pyarrow as pa

    counts: Counter[str] = Counter()
    writer = None
    with pa.OSFile(str(file), "wb") as sink:
        for examples in _encoded(rows, numbers, encode, counts):
            if examples:
                columns = _to_columns(examples)
                if writer is None:
                    schema = _schema(columns)
                    writer = pa.ipc.new_stream(sink, schema)
                writer.write_batch(pa.record_batch(columns, schema=schema))
            advance(min(_BATCH_ROWS, len(numbers)))
        if writer is not None:
            writer.close()
    if writer is None:  # every row was left out
        file.unlink()
    return dict(counts)


def _to_columns(examples: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the fields of examples as columns, those of a mapping under NAME.KEY."""
    columns: dict[str, list[Any]] = {_LENGTH: list(map(len, examples))}
    for field in dataclasses.fields(examples[0]):
        values = [getattr(example, field.name) for example in examples]
        if isinstance(values[0], Mapping):
            for key in values[0]:
                columns[f"{field.name}{_INSIDE}{key}"] = [value[key] for value in values]
        else:
            columns[field.name] = values
    return columns


def _schema(columns: Mapping[str, list[Any]]) -> Any:
    """Return Arrow types of columns: token ids have 32 bits, as all lists of whole numbers."""
    import pyarrow as pa

    fields = []
    for name, values in columns.items():
        kind = pa.infer_type([value for value in values if value is not None])
        if name == _LENGTH:
            kind = pa.int32()
        elif pa.types.is_list(kind) and pa.types.is_integer(kind.value_type):
            kind = pa.list_(pa.int32())
        elif pa.types.is_null(kind):
            kind = pa.list_(pa.float64())  # a teacher's probabilities, which other rows have
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _from_record(record: Mapping[str, Any], kind: type) -> Any:
    """Return the example of one record."""
    values: dict[str, Any] = {}
    for name, value in record.items():
        field, inside, key = name.partition(_INSIDE)
        if inside:
            values.setdefault(field, {})[key] = value
        else:
            values[name] = value
    return kind(**values)


def _open_parts(directory: Path) -> list[dict[str, Any]]:
    """Return the columns, by name, of each file of a directory."""
    parts = []
    for file in sorted(directory.glob("*.arrow")):
        table = open_table(file)
        parts.append({name: table.column(name) for name in table.column_names})
    return parts


def _numbers(array: Any) -> Any:
    """Return an Arrow array of numbers without nulls as an array of NumPy's.

    Arrow's own way imports pandas, which takes a second and 40 MiB.
    """
    kind = np.dtype(str(array.type).replace("double", "float64"))
    if not len(array):
        return np.zeros(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


def _describe(directory: Path) -> dict[str, Any]:
    """Return the largest token, and a digest of all values however files share them out."""
    hashed: dict[str, Any] = {}
    largest = -1
    for columns in _open_parts(directory):
        for name, column in columns.items():
            for chunk in column.chunks:
                for part, values in _values_of(name, chunk):
                    hashed.setdefault(part, hashlib.sha256(part.encode())).update(values)
                    if part.endswith("input_ids") and len(values):
                        largest = max(largest, int(values.max()))
    found = [digest.hexdigest() for _, digest in sorted(hashed.items())]
    digest = hashlib.sha256(" ".join(found).encode()).hexdigest()
    return {"digest": digest, "largest_token": largest}


def _values_of(name: str, chunk: Any) -> Iterator[tuple[str, Any]]:
    """Yield a column's values and, if they are lists, the lengths of these, each with a name."""
    kind = str(chunk.type)
    if kind.startswith("list"):
        yield name, _numbers(chunk.flatten())
        yield f"lengths of {name}", _numbers(chunk.value_lengths().fill_null(-1))
    elif kind.startswith(("int", "double")):
        yield name, _numbers(chunk)
    else:
        for value in chunk.to_pylist():
            yield name, repr(value).encode()
