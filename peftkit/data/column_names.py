"""What a file calls its columns, and what peftkit calls them."""

import difflib
import json
import re
from collections.abc import Collection, Mapping

from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError, nearest

_YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def missing_columns(rows: Rows, needed: Collection[str], name: str = "the file") -> str:
    """Return the message that columns are missing, with a line for the config that names them.

    Args:
        rows: Rows as `read_rows` returns them.
        needed: The columns that must be there, of which at least one is not.
        name: What the rows are called.
    """
    present = rows.columns
    missing = [column for column in needed if column not in present]
    return (
        f"{name} has the columns {', '.join(map(repr, present))} and no "
        f"{' and no '.join(map(repr, missing))}; if they are called otherwise, set "
        f"{columns_line(present, needed)}"
    )


def columns_line(present: Collection[str], needed: Collection[str]) -> str:
    """Return a line for the config, such as ``data.columns: {text: ticket, label: team}``.

    Args:
        present: The columns that are there. A missing one is most likely the one whose name is most
            like its own, or the first that nothing else is.
        needed: The columns that must be there.
    """
    free = [column for column in present if column not in needed]
    missing = [column for column in needed if column not in present]
    alike = {}
    for column in missing:
        for theirs in difflib.get_close_matches(column, free, n=1):
            alike[column] = theirs
            free.remove(theirs)
    pairs = []
    for column in missing:
        theirs = alike.get(column) or (free.pop(0) if free else "ITS_NAME")
        pairs.append(f"{column}: {_as_yaml(theirs)}")
    return f"data.columns: {{{', '.join(pairs)}}}"


def _as_yaml(name: str) -> str:
    """Return a name as YAML has it, in quotation marks unless it is a plain word."""
    is_plain = re.fullmatch(r"[A-Za-z_]\w*", name) and name.lower() not in _YAML_WORDS
    return name if is_plain else json.dumps(name, ensure_ascii=False)


def rename_columns(rows: Rows, columns: Mapping[str, str], optional: Collection[str] = ()) -> Rows:
    """Rename columns. A renamed column replaces one that already has its new name.

    Args:
        rows: Rows as `read_rows` returns them.
        columns: The file's name for each of peftkit's names.
        optional: The peftkit names whose columns the file may lack.

    Raises:
        DataError: the file lacks a column that is not optional.
    """
    if not columns:
        return rows
    present = rows.columns
    renamed = {}
    for ours, theirs in columns.items():
        if theirs in present:
            renamed[ours] = theirs
        elif ours not in optional:
            names = ", ".join(map(repr, present))
            raise DataError(
                f"there is no column {theirs!r}, which data.columns names, among {names}"
                f"{nearest(theirs, present)}"
            )
    replaced = {*renamed, *renamed.values()}

    def rename(row: Row) -> Row:
        values = {ours: row.get(theirs) for ours, theirs in renamed.items()}
        for column, value in row.items():
            if column not in replaced:
                values[column] = value
        return values

    return rows.map(rename)
