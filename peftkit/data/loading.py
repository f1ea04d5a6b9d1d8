"""From a config's data section to rows and examples."""

from transformers import PreTrainedTokenizerBase

from peftkit.data.formats import Format, Row, check_rows, detect_format, read_rows, rename_columns
from peftkit.data.rendering import Rendered, render_rows
from peftkit.sections import DataSettings


def load_rows(settings: DataSettings, path: str) -> tuple[list[Row], Format]:
    """Return the checked rows of a file, under peftkit's names for the columns, and their format.

    Raises:
        DataError: the file cannot be read, or a row is not what the format asks for.
    """
    rows = rename_columns(read_rows(path), settings.columns)
    kind = detect_format(rows) if settings.format == "auto" else settings.format
    check_rows(rows, kind)
    return rows, kind


def load_examples(
    settings: DataSettings, path: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Rendered, list[Row], Format]:
    """Return the examples of a file with the rows they were rendered from and the rows' format.

    Raises:
        DataError: as `load_rows`, or more than half of the rows have nothing to learn.
    """
    rows, kind = load_rows(settings, path)
    rendered = render_rows(
        rows, kind, tokenizer, max_length=settings.max_length, loss_on=settings.loss_on, system=settings.system
    )
    return rendered, rows, kind
