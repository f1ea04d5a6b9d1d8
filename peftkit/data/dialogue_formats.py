"""The row formats of language models: chat, prompt and completion, Alpaca, ShareGPT, plain text."""

from functools import partial

from peftkit.config.sections import DataSettings
from peftkit.data.column_names import rename_columns
from peftkit.data.row_files import read_rows
from peftkit.data.row_formats import FORMAT_COLUMNS, FileFormat, LossOn, convert_row
from peftkit.data.rows import Row, Rows
from peftkit.data.unused_keys import unused_keys
from peftkit.errors import ConfigError, DataError, nearest

_ANSWERS = ("completion", "output")  # the columns that rows without answers may lack


def read_text_rows(settings: DataSettings, path: str, *, labelled: bool = True) -> Rows:
    """Return the rows of a file in one of peftkit's own formats, each with its ``format``.

    If there is something in a row to learn from that nobody reads, ``unused`` lists it.

    Args:
        settings: The config's data section: names of columns, and perhaps the file's format.
        path: The file, as `read_rows` takes it.
        labelled: Whether rows must have answers. If not, prompts and instructions are enough.

    Raises:
        DataError: the file cannot be read. Reading a row raises it too, where the row does not fit
            the format.
        ConfigError: `data.loss_on` asks for answers that the format does not have.
    """
    optional = () if labelled else (*_ANSWERS, "expect")
    rows = rename_columns(read_rows(path), settings.columns, optional)
    kind = settings.format
    if kind == "auto":
        kind = detect_format(rows, labelled=labelled)
    if kind == "text" and settings.loss_on == "assistant":
        raise ConfigError(
            f"data.loss_on: assistant needs rows with answers, and {path} has plain texts: "
            "leave data.loss_on out"
        )
    loss_on = settings.loss_on or "assistant"
    return rows.map(partial(_convert, kind=kind, labelled=labelled, loss_on=loss_on))


def _convert(row: Row, kind: FileFormat, labelled: bool, loss_on: LossOn) -> Row:
    converted = convert_row(row, kind, labelled=labelled, loss_on=loss_on)
    unused = unused_keys(row, kind) if labelled else []
    return converted | {"unused": unused} if unused else converted


def detect_format(rows: Rows, *, labelled: bool = True) -> FileFormat:
    """Return the format that the columns belong to.

    Args:
        rows: Rows of one file.
        labelled: Whether rows must have the column of the answer.

    Raises:
        DataError: no format has these columns.
    """
    present = rows.columns
    for name, columns in FORMAT_COLUMNS.items():
        required = set(columns)
        if not labelled:
            required -= set(_ANSWERS)
        if required.issubset(present):
            return name
    needed = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in FORMAT_COLUMNS.items())
    hints = ""
    for columns in FORMAT_COLUMNS.values():
        for column in columns:
            hints += nearest(column, present)
    raise DataError(
        f"the columns {', '.join(map(repr, present))} belong to none of the known formats "
        f"({needed}){hints}; if they are called otherwise, set data.columns, such as "
        f"{{messages: {next(iter(present))}}}"
    )
