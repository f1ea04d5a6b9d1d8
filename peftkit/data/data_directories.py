"""Directories of data files, and the splits that the names of the files tell apart."""

import re
from collections.abc import Callable
from pathlib import Path

from peftkit.errors import DataError

# The words by which the Hub, too, knows splits in the names of files and directories.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_WORD = re.compile(r"[a-z]+")


def list_data_files(directory: Path, kind_of: Callable[[Path], str | None]) -> list[Path]:
    """Return the data files in a directory and those below it, sorted.

    Hidden files are left out, and those in which `datasets` describes its files.

    Args:
        directory: The directory.
        kind_of: Returns what kind of data file a file is; None if it is none.
    """
    found = []
    for file in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(directory).parts)
        if not hidden and file.name not in _NOT_ROWS and kind_of(file) and file.is_file():
            found.append(file)
    return found


def choose_files(
    directory: Path, split: str | None, kind_of: Callable[[Path], str | None]
) -> list[Path]:
    """Return the data files of one split of a directory, or all if no file names a split.

    Raises:
        DataError: there are none, they are of several kinds, or it is not clear which are meant.
    """
    files = list_data_files(directory, kind_of)
    if not files:
        raise DataError(f"the directory {directory} holds no data files")
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(directory)), []).append(file)
    chosen = by_split[_choose(directory, split, by_split)]
    by_kind = {kind_of(file): file for file in chosen}
    if len(by_kind) > 1:
        kinds = " and ".join(sorted(map(str, by_kind)))
        raise DataError(
            f"the directory {directory} holds {kinds} files: name one kind, such as "
            f"{directory}/*{sorted(map(str, by_kind))[0]}"
        )
    return chosen


def canonical_split(name: str) -> str | None:
    """Return "train", "validation" or "test" for a word that means it; None for another word."""
    for split, words in SPLITS.items():
        if name.lower() in words:
            return split
    return None


def _split_of(file: Path) -> str | None:
    """Return the split that a path names: the file's own name first, then its directories."""
    for part in reversed(file.parts):
        for word in _WORD.findall(part.lower()):
            split = canonical_split(word)
            if split is not None:
                return split
    return None


def _choose(
    directory: Path, split: str | None, by_split: dict[str | None, list[Path]]
) -> str | None:
    names = sorted(name for name in by_split if name is not None)
    wanted = canonical_split(split or "")
    if split is not None and (wanted is None or wanted not in by_split):
        there = f"has the splits {', '.join(names)}" if names else "has no splits"
        raise DataError(f"the directory {directory} {there}, and none called {split!r}")
    if split is not None:
        return wanted
    if len(by_split) == 1:
        return next(iter(by_split))
    if None in by_split:
        raise DataError(
            f"the directory {directory} holds {by_split[None][0].name}, which names no split, "
            f"beside files of {' and '.join(names)}: name the files, such as "
            f"{directory}/*{by_split[None][0].suffix}"
        )
    raise DataError(
        f"the directory {directory} has the splits {' and '.join(names)}: name one, such as "
        f"{directory}:{'train' if 'train' in names else names[0]}"
    )
