"""Arrow files in the cache: made once, by one process, whole or not at all, and memory-mapped."""

import itertools
import mmap
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from peftkit.errors import DataError
from peftkit.files import cache_directory, recover, staged_directory

_TABLE = "table.arrow"
_READS_BEFORE_LETTING_GO = 256

_mapped: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()
_reads = itertools.count(1)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return the directory of the cache with this name; where there is none, make it.

    Processes that ask for the same one at the same time wait for the first of them. One that is
    killed while it makes the directory leaves nothing that the next would take.

    Args:
        name: Says what is in it: another content has another name.
        make: Fills the empty directory that it is given.

    Raises:
        DataError: the cache cannot be written to.
    """
    target = cache_directory().resolve() / "data" / name
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            recover(target)
            if not target.exists():
                _sweep(target)
                with staged_directory(target) as stage:
                    make(stage)
    except OSError as problem:
        raise DataError(
            f"cannot write to peftkit's cache, {target.parent}: {problem.strerror or problem}; set "
            "the environment variable PEFTKIT_CACHE to a directory with room"
        ) from problem
    return target


def _sweep(target: Path) -> None:
    """Remove what a killed process left of this directory; the lock is held."""
    for left in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def written_table(name: str, write: Callable[[Any], None], *, is_small: bool) -> Any:
    """Return the table that `write` writes as an Arrow stream to the sink that it is given.

    Args:
        name: The name of its directory in the cache, as `made_once` takes it.
        write: Writes the stream.
        is_small: Keep the table in memory, and out of the cache.
    """
    import pyarrow as pa

    if is_small:
        buffer = pa.BufferOutputStream()
        write(buffer)
        return pa.ipc.open_stream(buffer.getvalue()).read_all()

    def make(directory: Path) -> None:
        with pa.OSFile(str(directory / _TABLE), "wb") as sink:
            write(sink)

    return open_table(made_once(name, make) / _TABLE)


def open_table(file: Path) -> Any:
    """Return the table in an Arrow stream, memory-mapped."""
    import pyarrow as pa

    with file.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    _mapped.add(pages)
    return pa.ipc.open_stream(pa.py_buffer(pages)).read_all()


def count_read() -> None:
    """Note that a value of a memory-mapped table was read; let go of pages from time to time."""
    if next(_reads) % _READS_BEFORE_LETTING_GO == 0:
        let_go_of_pages()


def let_go_of_pages() -> None:
    """Take the pages of all memory-mapped tables out of this process's memory.

    They stay in the system's cache, from where the next read gets them back. Otherwise a process
    that reads a whole table would hold all of it, as far as its user and its limits can see.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for pages in _mapped:
            pages.madvise(mmap.MADV_DONTNEED)
