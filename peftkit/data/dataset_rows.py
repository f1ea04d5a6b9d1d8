"""Rows of the `datasets` library: its objects, directories that it saved, data sets of the Hub."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.data_directories import canonical_split
from peftkit.data.rows import Row, Rows
from peftkit.data.table_files import class_names, to_value
from peftkit.errors import DataError

HUB_PREFIX = "hub:"
_HUB = re.compile(
    r"hub:(?P<path>[^/:@]+/[^/:@]+)(/(?P<name>[^:@]+))?(@(?P<revision>[^:]+))?(:(?P<split>.+))?"
)
_UNNAMED = "the data set"
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # of `save_to_disk`


def is_dataset(source: object) -> bool:
    """Return whether this is an object of the `datasets` library."""
    return type(source).__module__.partition(".")[0] == "datasets"


def dataset_rows(source: Any, name: str = _UNNAMED, split: str | None = None) -> Rows:
    """Return the rows of a `Dataset`, or of a `DatasetDict` with one split.

    Pictures and sounds are not decoded. The number of a class becomes its name.

    Args:
        source: The object.
        name: What messages call it.
        split: The split of a `DatasetDict`; None if it has only one.

    Raises:
        DataError: it has several splits and none is named, or it can only be read forward.
    """
    if isinstance(source, Mapping):
        source = source[_choose_split(source, split, name)]
    if not hasattr(source, "__len__"):
        raise DataError(
            f"{name} is a {type(source).__name__}, which can only be read forward: give a Dataset"
        )
    data = _undecoded(source.with_format(None))
    names = class_names(data.features.arrow_schema.metadata or {})

    def read(number: int) -> Row:
        return _named_values(data[number], names)

    return Rows(
        read, len(data), lambda number: f"{name}, row {number + 1}", lambda: str(data._fingerprint)
    )


def _choose_split(splits: Mapping[str, Any], split: str | None, name: str) -> str:
    if split in splits:
        return str(split)
    there = " and ".join(splits)
    if split is not None:
        raise DataError(f"{name} has the splits {there}, and none called {split!r}")
    if len(splits) != 1:
        first = "train" if "train" in splits else next(iter(splits), "train")
        example = f"data[{first!r}]" if name == _UNNAMED else f"{name}:{first}"
        raise DataError(f"{name} has the splits {there}: name one, such as {example}")
    return next(iter(splits))


def _undecoded(data: Any) -> Any:
    """Return a data set that leaves pictures and sounds as they are stored."""
    for column, feature in data.features.items():
        if getattr(feature, "decode", False) and hasattr(feature, "decode_example"):
            data = data.cast_column(column, type(feature)(decode=False))
    return data


def is_saved(directory: str | Path) -> bool:
    """Return whether `save_to_disk` of the `datasets` library wrote a directory."""
    path = Path(directory)
    return (path / _SAVED).is_file() or (path / _SAVED_SPLITS).is_file()


def saved_rows(directory: Path, split: str | None) -> Rows:
    """Return the rows of a directory that `save_to_disk` wrote.

    Args:
        directory: The directory, of a `Dataset` or a `DatasetDict`.
        split: The split of a `DatasetDict`; None if it has only one.

    Raises:
        DataError: it is damaged, or it is not clear which split is meant.
    """
    name = str(directory)
    data = _called(lambda: _library(name).load_from_disk(name), name)
    if isinstance(data, Mapping):
        split = _choose_split(data, _named_as_in(split, data), name)
        data, directory = data[split], directory / split
    rows = dataset_rows(data, name)

    def digest() -> str:
        hashed = hashlib.sha256()
        for file in sorted(directory.glob("*.arrow")):
            with file.open("rb") as content:
                hashed.update(hashlib.file_digest(content, "sha256").digest())
        return hashed.hexdigest()

    return Rows(rows.__getitem__, len(rows), rows.where, digest)


def _named_as_in(split: str | None, splits: Mapping[str, Any]) -> str | None:
    """Return the name by which splits have one, where another word for it was used."""
    if split is None or split in splits:
        return split
    for name in splits:
        if canonical_split(name) == canonical_split(split) is not None:
            return name
    return split


def hub_rows(source: str) -> Rows:
    """Return the rows of a data set of the Hub.

    Args:
        source: ``hub:OWNER/NAME``, and after it what is needed of ``/CONFIG``, ``@REVISION`` and
            ``:SPLIT``, in this order. The split may be a slice, such as ``train[:1000]``.

    Raises:
        DataError: there is no such data set or split, or it cannot be fetched.
    """
    return dataset_rows(
        _called(lambda: _library(source).load_dataset(**_asked(source)), source), source
    )


def hub_rows_forward(source: str, seed: int) -> Iterator[Row]:
    """Yield the rows of a data set of the Hub while it is fetched; nothing of it is kept.

    Args:
        source: The data set, as `hub_rows` takes it.
        seed: The seed of the order in which its parts are fetched.

    Raises:
        DataError: as `hub_rows`; also where the connection breaks.
    """

    def load() -> Any:
        data = _library(source).load_dataset(**_asked(source), streaming=True)
        if isinstance(data, Mapping):
            data = data[_choose_split(data, None, source)]
        return data.shuffle(seed=seed, buffer_size=1)

    data = _called(load, source)
    names = {}
    if data.features is not None:
        data = _undecoded(data)
        names = class_names(data.features.arrow_schema.metadata or {})
    rows = iter(data)
    while (row := _called(lambda: next(rows, None), source)) is not None:
        yield _named_values(row, names)


def _asked(source: str) -> dict[str, Any]:
    """Return the arguments of `load_dataset` for a source."""
    found = _HUB.fullmatch(source)
    if found is None:
        raise DataError(
            f"{source} is no data set of the Hub: write hub:OWNER/NAME, and if need be /CONFIG, "
            "@REVISION and :SPLIT after it, such as hub:nyu-mll/glue/sst2:train"
        )
    return found.groupdict()


def _named_values(row: Row, names: Mapping[str, Sequence[str]]) -> Row:
    """Return a row of a data set as `to_value` has its values."""
    values = {}
    for column, value in row.items():
        values[column] = to_value(value, names.get(column))
    return values


def _library(name: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as problem:
        raise DataError(
            f"{name} needs the datasets library: pip install 'peftkit[recipes]'"
        ) from problem
    return datasets


def _called(load: Callable[[], Any], name: str) -> Any:
    """Return what `load` returns; whatever goes wrong in it is a `DataError`."""
    try:
        return load()
    except DataError:
        raise
    except Exception as problem:  # builders, file systems and the network raise what they like
        message = " ".join(str(problem).split())[:400].rstrip(". ")
        raise DataError(
            f"cannot read {name}: {message or type(problem).__name__}{_remedy(problem)}"
        ) from problem


def _remedy(problem: Exception) -> str:
    """Return what to do about a problem with the Hub, as the end of a sentence."""
    text = f"{type(problem).__name__} {problem}".lower()
    if "gated" in text:
        return "; ask for access on its page, then run: hf auth login"
    if isinstance(problem, ConnectionError) or "offline" in text or "connect" in text:
        return "; the first time, a network is needed"
    if type(problem).__name__ == "DatasetNotFoundError":
        return "; check its name, and for a private one run: hf auth login"
    return ""
