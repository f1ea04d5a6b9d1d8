"""Rows of what does not fit on the disk: read forward, and shuffled as far as a buffer reaches."""

import random
from collections.abc import Iterable, Iterator

from peftkit.data.dataset_rows import HUB_PREFIX, hub_rows_forward, is_saved
from peftkit.data.row_files import RowSource, data_files, list_sources, read_forward, read_rows
from peftkit.data.rows import Row

_BUFFER_ROWS = 10_000


def stream_rows(source: RowSource, *, seed: int, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a source in random order, each once, without a copy of all of them.

    The order of files is random, and so is that of the parts of a data set of the Hub. Of the rows
    in them, 10,000 wait in a buffer, and the next one is drawn among these. The same seed gives the
    same order.

    Args:
        source: Where the rows are, as `peftkit.data.row_files.read_rows` takes it.
        seed: The seed of the order.
        encoding: The encoding of text files, as `read_rows` takes it.

    Raises:
        DataError: there is no such source, or a row cannot be read.
    """
    draw = random.Random(seed)
    sources = list_sources(source)
    draw.shuffle(sources)

    def forward() -> Iterator[Row]:
        for each in sources:
            yield from _read_forward(each, seed, encoding)

    return _shuffled(forward(), draw)


def _read_forward(source: RowSource, seed: int, encoding: str | None) -> Iterator[Row]:
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        yield from hub_rows_forward(source, seed)
        return
    if not isinstance(source, str) or is_saved(source):
        yield from read_rows(source)
        return
    files = data_files(source, encoding)
    random.Random(seed).shuffle(files)
    for file in files:
        yield from read_forward(file)


def _shuffled(rows: Iterable[Row], draw: random.Random) -> Iterator[Row]:
    """Yield the rows, each drawn from those that wait."""
    waiting: list[Row] = []
    for row in rows:
        if len(waiting) < _BUFFER_ROWS:
            waiting.append(row)
            continue
        chosen = draw.randrange(_BUFFER_ROWS)
        yield waiting[chosen]
        waiting[chosen] = row
    draw.shuffle(waiting)
    yield from waiting
