"""The rows of a run that reads them forward: as many as its steps need, kept in its directory."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState

from peftkit.data.row_files import list_sources, source_directory, source_name
from peftkit.data.rows import Row, Rows
from peftkit.data.streamed_rows import stream_rows
from peftkit.runs.kept_rows import keep_rows

STREAMED_ROWS = "streamed_rows.jsonl"
_ROWS_TO_SHOW = 1000  # where nothing is trained


def read_streamed(config: Any, directory: Path | None) -> tuple[Rows, str]:
    """Return the rows of ``data.train`` that the steps of a run need, and a line that says so.

    They are read once, and kept. A run that is resumed takes those that it had, whatever the source
    has become, and all else is as if the file of them had been the data.

    Args:
        config: The run's config.
        directory: The run's directory; None reads 1,000 rows and keeps nothing.
    """
    data = config.data

    def rows() -> Iterator[Row]:
        return stream_rows(data.train, seed=config.seed, encoding=data.encoding)

    if directory is None:
        shown = Rows.of(list(islice(rows(), _ROWS_TO_SHOW)), str(data.train))
        shown.directory = _directory(data.train)
        return shown, f"data.streaming: these are {len(shown):,} rows"
    count = count_rows(config)
    kept = keep_rows(directory / STREAMED_ROWS, lambda: islice(rows(), count))
    kept.directory = _directory(data.train)
    name = " and ".join(
        map(source_name, [data.train] if isinstance(data.train, str) else data.train)
    )
    line = f"data.streaming: {len(kept):,} rows of {name} are kept in {directory / STREAMED_ROWS}"
    if len(kept) < count:
        line += f", which are all; the steps take {count:,}, so rows come again"
    return kept, line


def _directory(train: str | list[str]) -> Path | None:
    """Return the directory that files which rows name are relative to, if the data has only one."""
    found = {source_directory(source) for source in list_sources(train)}
    return found.pop() if len(found) == 1 else None


def count_rows(config: Any) -> int:
    """Return how many rows a run reads: those of all its steps, the held-out ones and the shots."""
    train, data = config.train, config.data
    learned: int = (
        train.max_steps * train.batch_size * train.accumulate * PartialState().num_processes
    )
    share = data.evaluation if isinstance(data.evaluation, float) else 0.0
    return math.ceil(learned / (1 - share)) + int(getattr(data, "shots", 0))
