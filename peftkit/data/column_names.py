"""What a file calls its columns, and what peftkit calls them."""

import json
from collections.abc import Collection, Mapping, Sequence

from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError, nearest


def missing_columns(rows: Rows, needed: Collection[str], name: str = "the file") -> str:
    """Return the message that columns are missing, with a line for the config that names them.

    Args:
        rows: Rows as `read_rows` returns them.
        needed: The columns that must be there, of which at least one is not.
        name: What the rows are called.
    """
    present = rows.columns
    missing = [column for column in needed if column not in present]
    free = [column for column in present if column not in needed]
    example = {}
    for column in missing:
        theirs = _most_like(column, free)
        if theirs in free:
            free.remove(theirs)
        example[column] = theirs
    pairs = ", ".join(f"{ours}: {_as_yaml(theirs)}" for ours, theirs in example.items())
    return (
        f"{name} has the columns {', '.join(map(repr, present))} and no "
        f"{' and no '.join(map(repr, missing))}; if they are called otherwise, set "
        f"data.columns: {{{pairs}}}"
    )


def _most_like(column: str, free: Sequence[str]) -> str:
    """Return the name that is most like a column's, or else the first; or a place to fill in."""
    if not free:
        return "ITS_NAME"
    hint = nearest(column, free)
    for name in free:
        if hint.endswith(f"{name!r}?"):
            return name
    return free[0]


def _as_yaml(name: str) -> str:
    return name if name.replace("_", "").isalnum() else json.dumps(name, ensure_ascii=False)


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
            raise DataError(f"no column {theirs!r} among {names}{nearest(theirs, present)}")
    replaced = {*renamed, *renamed.values()}

    def rename(row: Row) -> Row:
        values = {ours: row.get(theirs) for ours, theirs in renamed.items()}
        for column, value in row.items():
            if column not in replaced:
                values[column] = value
        return values

    return rows.map(rename)
