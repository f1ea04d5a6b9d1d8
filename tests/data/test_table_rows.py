"""Rows have the columns that a task needs, and mistakes are named with their row."""

import pytest

from peftkit.data.table_rows import list_labels, read_table_rows
from peftkit.errors import DataError
from tests.recipes.jobs import write_jsonl

KINDS = {"text": (str,), "label": (str, int)}


def test_columns_of_a_table_are_renamed_and_checked(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"review": "a", "stars": 4}, {"review": "b", "stars": 5}]
    )
    rows = read_table_rows(path, KINDS, {"text": "review", "label": "stars"})
    assert rows == [{"text": "a", "label": 4}, {"text": "b", "label": 5}]
    with pytest.raises(
        DataError, match=r"has the columns 'review', 'stars' and no 'text'.*data\.columns"
    ):
        read_table_rows(path, KINDS, {})
    with pytest.raises(DataError, match=r"no column 'revew'.*did you mean 'review'"):
        read_table_rows(path, KINDS, {"text": "revew"})


@pytest.mark.parametrize(
    ("label", "what"), [(True, "True"), (1.5, "1.5"), (None, "None"), (["x"], r"\['x'\]")]
)
def test_a_label_of_another_type_is_named_with_its_row(tmp_path, label, what):
    rows = [{"text": "a", "label": label}, {"text": "b", "label": label}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        DataError, match=f"row 1: 'label' is {what}; it must be a text or a whole number"
    ):
        list(read_table_rows(path, KINDS, {}))


def test_labels_are_sorted_by_value_or_alphabet():
    assert list_labels([10, 9, 2]) == ["2", "9", "10"]
    assert list_labels(["b", "a", "b"]) == ["a", "b"]
    assert list_labels([1, "x"]) == ["1", "x"]
