"""Columns are renamed, and a missing one is named with the line that renames it."""

import pytest
import yaml

from peftkit.config.reading import build
from peftkit.config.sections import RowSettings
from peftkit.data.column_names import missing_columns, rename_columns
from peftkit.data.rows import Rows
from peftkit.errors import DataError


def test_columns_are_renamed():
    rows = rename_columns(Rows.of([{"conversation": 1, "other": 2}]), {"messages": "conversation"})
    assert rows == [{"messages": 1, "other": 2}]
    given = Rows.of([{"text": "body", "headline": "head", "label": 0}])
    assert rename_columns(given, {"text": "headline"}) == [{"text": "head", "label": 0}]
    assert rename_columns(given, {"text": "headline", "headline": "text"})[0]["headline"] == "body"
    assert (
        rename_columns(given, {"tags": "ner", "text": "body"}, optional=["tags", "text"]) == given
    )


def test_a_column_that_is_not_there_cannot_be_renamed():
    with pytest.raises(
        DataError,
        match=r"no column 'ticket', which data\.columns names, .*did you mean 'tickets'\?",
    ):
        rename_columns(Rows.of([{"tickets": "x"}]), {"text": "ticket"})


@pytest.mark.parametrize(
    ("columns", "needed", "line"),
    [
        (["ticket", "team"], ["text", "label"], "{text: ticket, label: team}"),
        (["labels", "body"], ["text", "label"], "{text: body, label: labels}"),
        (["text", "class"], ["text", "label"], "{label: class}"),
        (["the text", "a: b"], ["text", "label"], '{text: "the text", label: "a: b"}'),
        (["text"], ["text", "label"], "{label: ITS_NAME}"),
        (["yes", "1"], ["text", "label"], '{text: "yes", label: "1"}'),
    ],
)
def test_a_missing_column_is_named_with_the_line_that_names_it(columns, needed, line):
    message = missing_columns(Rows.of([dict.fromkeys(columns, "x")]), needed, "rows.csv")
    assert message.startswith(f"rows.csv has the columns {', '.join(map(repr, columns))} and no ")
    assert message.endswith(f"set data.columns: {line}")


def test_the_line_can_be_pasted():
    rows = Rows.of([{"the #1 'text'": "x", "null": "y"}])
    line = missing_columns(rows, ["text", "label"]).rpartition("set ")[2].removeprefix("data.")
    settings = build(RowSettings, {"train": "x"} | yaml.safe_load(line), "config.yaml")
    assert rename_columns(rows, settings.columns)[0].keys() == {"text", "label"}
