"""The values of a table's columns: what is taken, as what, and what is refused."""

import math

import pytest

from peftkit.data.table_values import read_any_text, read_label, read_path, read_score, read_text
from peftkit.errors import DataError, EmptyRowError

SURROGATE = "a\ud800b"


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("billing", "billing"),
        ("Billing ", "Billing "),  # a class of its own, which `fit` points out
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (True, "true"),
        (False, "false"),
        ("None", "None"),
        ("nan", "nan"),
        ("1.0", "1.0"),
        ("İ\u2028\u200b", "İ\u2028\u200b"),
    ],
)
def test_a_label_becomes_the_text_that_names_its_class(value, label):
    assert read_label(value, "label") == label


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "'label' is 1.5; it must be a text or a whole number"),
        (float("nan"), "'label' is nan; it must be"),
        (float("inf"), "'label' is inf; it must be"),
        ([1], r"'label' is \[1\]; it must be"),
        ({"a": 1}, "'label' is {'a': 1}; it must be"),
        (SURROGATE, "'label' holds half of a surrogate pair"),
    ],
)
def test_what_names_no_class_is_refused(value, message):
    with pytest.raises(DataError, match=message):
        read_label(value, "label")


@pytest.mark.parametrize(
    ("value", "score"),
    [(3, 3), (3.5, 3.5), ("3.5", 3.5), (" -2 ", -2.0), ("1e3", 1000.0), (".5", 0.5), ("5.", 5.0)],
)
def test_a_score_may_be_written_as_a_text(value, score):
    assert read_score(value, "score") == score


@pytest.mark.parametrize(
    "value",
    [
        "3,5",
        "abc",
        "1_000",
        "nan",
        "inf",
        "1e999",
        "3.5 points",
        "0x10",
        True,
        [1],
        10**400,
        math.inf,
    ],
)
def test_what_is_no_finite_number_is_refused_as_a_score(value):
    with pytest.raises(DataError, match=r"'score' is .*; it must be a number, with a point before"):
        read_score(value, "score")


@pytest.mark.parametrize("read", [read_text, read_label, read_score, read_path])
@pytest.mark.parametrize(
    ("value", "what"), [(None, "missing"), ("", "blank"), (" \t\n\u3000\xa0", "blank")]
)
def test_what_is_missing_or_blank_can_be_skipped(read, value, what):
    with pytest.raises(
        EmptyRowError, match=rf"is {what}: leave the row out, or set data.skip_empty"
    ):
        read(value, "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "'text' is 5; it must be a text"),
        (True, "'text' is True; it must be a text"),
        (["a"], r"'text' is \['a'\]; it must be a text"),
        (SURROGATE, "'text' holds half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("read", [read_text, read_any_text])
def test_a_text_is_a_text_that_can_be_written(read, value, message):
    with pytest.raises(DataError, match=message):
        read(value, "text")


@pytest.mark.parametrize("text", ["a", "\u2028", "\ufeff", "👩\u200d👩", "a\x00b", "e\u0301"])
def test_every_other_text_stays_as_it_is(text):
    assert read_any_text(text, "text") == text
