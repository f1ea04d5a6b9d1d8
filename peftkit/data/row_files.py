"""Rows from wherever people have them: files, directories, the Hub, and objects in Python.

A large file is copied once into an Arrow file of the cache, which all processes map into their
memory.
"""

import glob
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from peftkit.config.shipped import PACKAGE_PREFIX, package_file
from peftkit.data.arrow_files import written_table
from peftkit.data.data_directories import choose_files, list_data_files
from peftkit.data.data_file import PACKED, DataFile
from peftkit.data.dataset_rows import (
    HUB_PREFIX,
    dataset_rows,
    hub_rows,
    is_dataset,
    is_saved,
    saved_rows,
)
from peftkit.data.json_files import json_rows, read_json, read_json_lines
from peftkit.data.rows import Row, Rows
from peftkit.data.samples import PREFIX as SAMPLE_PREFIX
from peftkit.data.samples import sample_file
from peftkit.data.spreadsheet_files import read_xlsx
from peftkit.data.table_files import read_arrow, read_csv, read_parquet, read_tsv, table_rows
from peftkit.errors import DataError

RowSource = Any
"""Where rows are, as `read_rows` takes it."""

_READERS: dict[str, Callable[[DataFile], Iterator[Any]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".xlsx": read_xlsx,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
_TEXT_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # may be compressed
_JSON_KINDS = (".jsonl", ".ndjson", ".json", ".xlsx")
_FORMAT = 2  # of the files in the cache
_UNPACKERS = {".zst": "zstd -d", ".zip": "unzip", ".7z": "7z x", ".tar": "tar xf"}


def read_rows(source: RowSource, *, encoding: str | None = None) -> Rows:
    """Return the rows of a source, or of several, one after the other.

    A source is one of these:

    - a file of JSON (.jsonl, .ndjson, .json), CSV or TSV, each also .gz, .bz2 or .xz; .parquet,
      .arrow; .xlsx, or ``FILE.xlsx:SHEET`` where several sheets have cells;
    - a pattern of such files, such as ``data/*.jsonl``;
    - a directory of such files, or one that `save_to_disk` of `datasets` wrote; ``DIR:SPLIT`` where
      its files are of several splits;
    - ``hub:OWNER/NAME``, a data set of the Hub, as `peftkit.data.dataset_rows.hub_rows` takes it;
    - ``sample:NAME/SPLIT``, or ``package:NAME/FILE`` for what is in an installed package;
    - in Python, a list of dicts, a `Dataset`, or a `DatasetDict` with one split.

    JSON values stay as they are written, so a date stays a text. So do cells of CSV and TSV, which
    are all texts; an empty one is None.

    Args:
        source: A source, or a list of several.
        encoding: The encoding of text files that have no byte order mark; None is UTF-8.

    Raises:
        DataError: there is no such source, it cannot be parsed, or it has no rows. Reading a row
            raises it too, where a line is not a JSON object.
    """
    found = []
    for each in list_sources(source):
        found.append(_read_one(each, encoding))
    return Rows.joined(found)


def list_sources(source: RowSource) -> list[RowSource]:
    """Return the single sources: those of a list, and the files that a pattern stands for.

    Raises:
        DataError: no file fits a pattern.
    """
    if isinstance(source, str | Path):
        return _expand(str(source))
    if not isinstance(source, list | tuple) or (source and isinstance(source[0], Mapping)):
        return [source]
    found = []
    for each in source:
        found += list_sources(each)
    return found


def _expand(path: str) -> list[str]:
    """Return the files that fit a pattern, sorted. A path that is no pattern stays as it is."""
    is_path = not path.startswith((SAMPLE_PREFIX, PACKAGE_PREFIX, HUB_PREFIX))
    if not is_path or not glob.has_magic(path) or Path(path).expanduser().exists():
        return [path]
    parts = Path(path).expanduser().parts
    fixed = [glob.has_magic(part) for part in parts].index(True)
    files = []
    for found in sorted(Path(*parts[:fixed]).glob("/".join(parts[fixed:]))):
        if found.is_file():
            files.append(str(found))
    if not files:
        raise DataError(f"no data file fits the pattern {path}")
    return files


def source_directory(source: RowSource) -> Path:
    """Return the directory that files which rows name are relative to.

    It is the one that holds the data file, or the directory itself that was named. For what is not
    a file, it is the current one.
    """
    if isinstance(source, Rows) and source.directory is not None:
        return source.directory
    if not isinstance(source, str | Path) or str(source).startswith(HUB_PREFIX):
        return Path.cwd()
    path, _ = _find(str(source))
    return path.resolve() if path.is_dir() else path.parent.resolve()


def is_directory_of_rows(path: Path) -> bool:
    """Return whether a path is a directory with data files."""
    return path.is_dir() and (is_saved(path) or bool(list_data_files(path, _kind_of)))


def _read_one(source: RowSource, encoding: str | None) -> Rows:
    if isinstance(source, Rows):
        rows = source
    elif is_dataset(source):
        rows = dataset_rows(source)
    elif isinstance(source, str) and source.startswith(HUB_PREFIX):
        rows = hub_rows(source)
    elif isinstance(source, str | Path):
        rows = _read_path(str(source), encoding)
    elif isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        rows = Rows.of(source)
    else:
        raise DataError(
            f"rows cannot be read from a {type(source).__name__}: give a path, a list of dicts, or "
            "a Dataset of the datasets library"
        )
    if not rows:
        raise DataError(f"{source_name(source)} holds no rows")
    return rows


def source_name(source: RowSource) -> str:
    """Return what messages call a source."""
    return str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"


def _read_path(source: str, encoding: str | None) -> Rows:
    directory, split = _find(source)
    if is_saved(directory):
        return saved_rows(directory, split)
    files = []
    for file in data_files(source, encoding):
        files.append(_read_file(file))
    return Rows.joined(files)


def data_files(source: str, encoding: str | None) -> list[DataFile]:
    """Return the data files at a path: one, or those of a directory.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    _check_arrow(source)
    path, part = _find(source)
    if not path.is_dir():
        return [_open(path, encoding, part, among=1)]
    files = []
    paths = choose_files(path, part, _kind_of)
    for each in paths:
        files.append(_open(each, encoding, None, among=len(paths)))
    return files


def _open(path: Path, encoding: str | None, part: str | None, *, among: int) -> DataFile:
    kind = _kind_of(path)
    if kind is None:
        raise DataError(_unknown_ending(path))
    packing = path.suffix.lower() if path.suffix.lower() in PACKED else ""
    return DataFile.at(path, kind.removesuffix(packing), packing, encoding, part, among)


def _check_arrow(source: str) -> None:
    try:
        import pyarrow as pa  # noqa: F401
    except ModuleNotFoundError as problem:
        raise DataError(
            f"{source}: rows need the datasets library: pip install 'peftkit[recipes]'"
        ) from problem


def _find(source: str) -> tuple[Path, str | None]:
    """Return the path that a source names, and the part of it: a split, or a sheet."""
    if source.startswith(SAMPLE_PREFIX):
        return sample_file(source), None
    if source.startswith(PACKAGE_PREFIX):
        return package_file(source, DataError), None
    path = Path(source).expanduser()
    before, colon, part = source.rpartition(":")
    try:
        whole = Path(before).expanduser()
        if colon and not path.exists() and (whole.is_dir() or whole.suffix.lower() == ".xlsx"):
            return whole, part
        if path.exists():
            return path, None
    except (OSError, ValueError) as problem:
        raise DataError(f"cannot read {source}: {problem}") from problem
    hint = ""
    if len(path.parts) == 2 and not path.is_absolute() and not path.suffix:
        hint = f"; for the data set of the Hub, write {HUB_PREFIX}{source}"
    raise DataError(f"there is no data file at {source}{hint}")


def _read_file(file: DataFile) -> Rows:
    key = [f"rows{file.kind}{file.packing}", str(_FORMAT), file.digest[:32]]
    key += filter(None, (file.encoding, file.part))
    table = written_table("-".join(key), partial(_copy, file), is_small=file.is_small)
    return _to_rows(file, table)


def read_forward(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a file one after the other, without a copy of it."""
    import pyarrow as pa

    for batch in _READERS[file.kind](file):
        yield from _to_rows(file, pa.Table.from_batches([batch]))


def _to_rows(file: DataFile, table: Any) -> Rows:
    """Return the rows of a table that was copied from a file."""
    if file.kind in _JSON_KINDS:
        return json_rows(file, table, "sheet row" if file.kind == ".xlsx" else "row")
    return table_rows(file, table)


def _kind_of(path: Path) -> str | None:
    """Return the ending of a data file, such as ".csv" or ".jsonl.gz"; None for another file."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _READERS:
        return suffixes[-1]
    if len(suffixes) == 2 and suffixes[0] in _TEXT_KINDS and suffixes[1] in PACKED:
        return "".join(suffixes)
    return None


def _unknown_ending(path: Path) -> str:
    unpacker = _UNPACKERS.get(path.suffix.lower())
    if unpacker is not None:
        return f"{path} is packed in a way that is not read here: run {unpacker} {path.name}"
    if path.suffix.lower() == ".xls":
        return f"{path} is in Excel's old format: save it as .xlsx or .csv"
    return (
        f"{path} ends in {path.suffix!r}; data files end in {', '.join(_READERS)}, and those of "
        f"text may end in {', '.join(PACKED)} after that"
    )


def _copy(file: DataFile, sink: Any) -> None:
    """Write the rows of a file as an Arrow stream; after a second, a bar counts them."""
    import pyarrow as pa

    writer = None
    name = f"reading {file.path.name}"
    with tqdm(desc=name, unit=" rows", delay=1, file=sys.stderr, leave=False) as bar:
        for batch in _READERS[file.kind](file):
            if writer is None:
                writer = pa.ipc.new_stream(sink, batch.schema)
            writer.write_batch(batch)
            bar.update(len(batch))
    if writer is None:
        raise DataError(f"{file.path} holds no rows")
    writer.close()
    file.check_unchanged()
