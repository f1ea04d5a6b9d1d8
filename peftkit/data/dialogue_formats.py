"""The row formats of language models: chat, prompt and completion, Alpaca, ShareGPT, plain text."""

from collections.abc import Sequence
from functools import partial

from peftkit.config.sections import DataSettings
from peftkit.data.column_names import columns_line, missing_columns, rename_columns
from peftkit.data.row_files import RowSource, read_rows, source_name
from peftkit.data.row_formats import FORMAT_COLUMNS, FileFormat, LossOn, convert_row
from peftkit.data.rows import Row, Rows
from peftkit.data.unused_keys import unused_keys
from peftkit.errors import ConfigError, DataError, nearest

_ANSWERS = ("completion", "output")  # the columns that rows without answers may lack


def read_text_rows(settings: DataSettings, source: RowSource, *, labelled: bool = True) -> Rows:
    """Return the rows of a file in one of peftkit's own formats, each with its ``format``.

    If there is something in a row to learn from that nobody reads, ``unused`` lists it.

    Args:
        settings: The config's data section: names of columns, and perhaps the file's format.
        source: Where the rows are, as `read_rows` takes it.
        labelled: Whether rows must have answers. If not, prompts and instructions are enough.

    Raises:
        DataError: the file cannot be read. Reading a row raises it too, where the row does not fit
            the format.
        ConfigError: `data.loss_on` asks for answers that the format does not have.
    """
    optional = () if labelled else (*_ANSWERS, "expect")
    rows = rename_columns(read_rows(source, encoding=settings.encoding), settings.columns, optional)
    kind = settings.format
    if kind == "auto":
        kind = detect_format(rows, labelled=labelled, name=source_name(source))
    elif not set(FORMAT_COLUMNS[kind]).intersection(rows.columns):
        raise DataError(missing_columns(rows, FORMAT_COLUMNS[kind], source_name(source)))
    if kind == "text" and settings.loss_on == "assistant":
        raise ConfigError(
            f"data.loss_on: assistant needs rows with answers, and {source_name(source)} has plain "
            "texts: leave data.loss_on out"
        )
    loss_on = settings.loss_on or "assistant"
    return rows.map(partial(_convert, kind=kind, labelled=labelled, loss_on=loss_on))


def _convert(row: Row, kind: FileFormat, labelled: bool, loss_on: LossOn) -> Row:
    converted = convert_row(row, kind, labelled=labelled, loss_on=loss_on)
    unused = unused_keys(row, kind) if labelled else []
    return converted | {"unused": unused} if unused else converted


def detect_format(rows: Rows, *, labelled: bool = True, name: str = "the file") -> FileFormat:
    """Return the format that the columns belong to.

    Args:
        rows: Rows of one file.
        labelled: Whether rows must have the column of the answer.
        name: What messages call the rows.

    Raises:
        DataError: no format has these columns.
    """
    present = rows.columns
    for kind, columns in FORMAT_COLUMNS.items():
        required = set(columns)
        if not labelled:
            required -= set(_ANSWERS)
        if required.issubset(present):
            return kind
    needed = "; ".join(f"{kind}: {', '.join(columns)}" for kind, columns in FORMAT_COLUMNS.items())
    likely, alike = _likely_format(rows)
    raise DataError(
        f"{name} has the columns {', '.join(map(repr, present))}, which belong to none of the "
        f"known formats ({needed}); if they are called otherwise, set "
        f"{columns_line(alike, FORMAT_COLUMNS[likely])}"
    )


def _likely_format(rows: Rows) -> tuple[FileFormat, Sequence[str]]:
    """Return the format that columns of other names probably belong to, and those that may."""
    present = rows.columns
    for kind, columns in FORMAT_COLUMNS.items():
        if any(column in present or nearest(column, present) for column in columns):
            return kind, present
    lists, texts = [], []
    for column, value in rows[0].items():
        if isinstance(value, list):
            lists.append(column)
        elif isinstance(value, str):
            texts.append(column)
    if lists:
        return "chat", lists
    return ("text", texts or present) if len(texts) < 2 else ("prompt-completion", texts)
