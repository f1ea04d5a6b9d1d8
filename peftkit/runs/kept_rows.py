"""Rows that a run makes once and keeps in its directory, since it might not make them again."""

from collections.abc import Callable, Iterable
from pathlib import Path

from accelerate import PartialState

from peftkit.data.row_files import read_rows
from peftkit.data.rows import Row, Rows
from peftkit.files import write_rows


def keep_rows(path: Path, make: Callable[[], Iterable[Row]]) -> Rows:
    """Return the rows in a file; where there is no file, make and write them first.

    A back-translator, or another device, would make other ones when the run is resumed.

    Args:
        path: The file; the main process writes it.
        make: Makes the rows. All processes call it, and only one goes through what it returns.
    """
    state = PartialState()
    is_kept = path.exists()
    state.wait_for_everyone()  # all have looked before the first one writes
    if not is_kept:
        rows = make()
        if state.is_main_process:
            write_rows(path, rows)
        state.wait_for_everyone()
    return read_rows(path)
