"""Labels in messages: which are unknown, and which are likely slips."""

from collections import Counter

import pytest

from peftkit.errors import DataError
from peftkit.tasks.labels import describe_variants, find_number, label_numbers, listed


def test_many_labels_are_listed_in_part_and_white_space_is_seen():
    assert listed(["a", " b"]) == "a, ' b'"
    assert listed([str(number) for number in range(150)]) == (
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 140 more"
    )


def test_an_unknown_label_is_named_with_the_nearest_one():
    numbers = label_numbers(["billing", "bug"])
    assert find_number("bug", numbers, "label") == 1
    with pytest.raises(DataError, match=r"'bugg' is none of billing, bug, .* did you mean 'bug'\?"):
        find_number("bugg", numbers, "label")


def test_labels_that_differ_are_no_slips():
    assert describe_variants(Counter(["a", "b", "a b", "ab"]), "label", "rows") == []
