"""From a config's data section to checked rows."""

from peftkit.config.sections import DataSettings
from peftkit.data.formats import (
    Format,
    Row,
    check_rows,
    converted,
    detect_format,
    read_rows,
    rename_columns,
)
from peftkit.errors import ConfigError

_ANSWERS = ("completion", "output", "expect")


def load_rows(
    settings: DataSettings, path: str, *, labelled: bool = True
) -> tuple[list[Row], Format]:
    """Return the checked rows of a file, under peftkit's names for the columns, and their format.

    Args:
        settings: Names of columns, and the format.
        path: What `read_rows` reads.
        labelled: Rows must have the texts that a model learns to write; else prompts and
            instructions alone will do.

    Raises:
        DataError: the file cannot be read, or a row is not what the format asks for.
    """
    rows = rename_columns(read_rows(path), settings.columns, optional=() if labelled else _ANSWERS)
    given = detect_format(rows, labelled=labelled) if settings.format == "auto" else settings.format
    rows, kind = converted(rows, given, labelled=labelled)
    if kind == "prompt-completion" and not labelled:
        rows = [row | {"completion": row.get("completion") or ""} for row in rows]
    check_rows(rows, kind)
    if kind == "text" and settings.loss_on == "assistant":
        raise ConfigError(
            f"data.loss_on: assistant needs rows with answers; {path} has texts: leave data.loss_on out"
        )
    return rows, kind
