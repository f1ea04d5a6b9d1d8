"""Names of classes are sorted as a person sorts them, and likely slips among them are found."""

from collections import Counter

import pytest

from peftkit.data.class_names import class_name, find_variants, rename_classes, sorted_names
from peftkit.data.rows import Rows
from peftkit.errors import DataError


def test_names_are_sorted_by_value_or_alphabet():
    assert sorted_names(["10", "9", "2"]) == ["2", "9", "10"]
    assert sorted_names(["-1", "+1", "0", "00"]) == ["-1", "0", "00", "+1"]
    assert sorted_names(["b", "a", "B"]) == ["B", "a", "b"]
    assert sorted_names(["10", "9", "x"]) == ["10", "9", "x"]
    assert sorted_names(["1", "1.0"]) == ["1", "1.0"]
    assert sorted_names([]) == []


def test_names_that_differ_only_in_case_or_white_space_are_found():
    counts = Counter({"billing": 9, "BUG": 1, "Billing ": 2, "bug": 4, "  billing": 1, "other": 3})
    assert find_variants(counts) == [
        ("Billing ", "billing"),
        ("  billing", "billing"),
        ("BUG", "bug"),
    ]
    assert find_variants(Counter({"a b": 1, "ab": 1, "a-b": 1})) == []


@pytest.mark.parametrize("value", [None, True, 0.5, "", "  ", ["O"], {}])
def test_what_names_no_class_is_refused_with_its_place(value):
    with pytest.raises(
        DataError, match=r"^the tag of word 2, 'ran', is .*; it must be a text or a"
    ):
        class_name(value, "the tag of word 2, 'ran',")


def test_classes_get_other_names_wherever_they_stand():
    rows = [
        {"label": "Billing ", "n": 1},
        {"label": "bug"},
        {"tags": ["0", "1", "0"], "tokens": ["a", "b", "c"]},
        {"spans": [{"start": 0, "end": 1, "label": "1"}, {"start": 2, "end": 3, "label": "x"}]},
        {"text": "a"},
    ]
    names = {"Billing ": "billing", "0": "O", "1": "B-PER"}
    assert rename_classes(Rows.of(rows), names) == [
        {"label": "billing", "n": 1},
        {"label": "bug"},
        {"tags": ["O", "B-PER", "O"], "tokens": ["a", "b", "c"]},
        {"spans": [{"start": 0, "end": 1, "label": "B-PER"}, {"start": 2, "end": 3, "label": "x"}]},
        {"text": "a"},
    ]
    assert rows[0]["label"] == "Billing "
