from collections import Counter

import numpy as np
import pytest

from peftkit.data.row_shares import draw_shares, oversample
from peftkit.errors import DataError

FILES = np.array([0] * 900 + [1] * 100)


def test_a_file_with_too_few_rows_repeats_them_and_one_with_too_many_gives_some():
    drawn, line = draw_shares(FILES, ["a.jsonl", "b.jsonl"], [0.7, 0.3], seed=0)
    times = Counter(drawn.tolist())
    assert len(drawn) == 1000
    assert len(set(drawn[:700].tolist())) == 700  # none of a.jsonl comes twice
    assert [times[number] for number in range(900, 1000)] == [3] * 100
    assert line == "data.shares: a.jsonl 700 of 900 rows, b.jsonl 300 rows (each 3 times)"


def test_rows_that_cannot_all_come_equally_often_differ_by_one():
    drawn, line = draw_shares(FILES, ["a", "b"], [0.75, 0.25], seed=0)
    times = Counter(drawn.tolist())
    assert Counter(times[number] for number in range(900, 1000)) == {2: 50, 3: 50}
    assert line.endswith("b 250 rows (each 2 or 3 times)")


def test_the_shares_that_the_files_have_already_take_each_row_once():
    drawn, line = draw_shares(FILES, ["a", "b"], [0.9, 0.1], seed=0)
    assert sorted(drawn.tolist()) == list(range(1000))
    assert line == "data.shares: a 900 rows, b 100 rows"


def test_a_seed_draws_the_same_rows_again_and_another_seed_others():
    first, again, other = (
        draw_shares(FILES, ["a", "b"], [0.5, 0.5], seed)[0].tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("files", "shares", "message"),
    [
        ([0, 0, 1], [0.99, 0.01], "0.01 of 3 rows leaves none of b"),
        ([0, 0, 0], [0.5, 0.5], "b has no rows left to train on"),
    ],
)
def test_a_file_that_gives_no_row_is_refused(files, shares, message):
    with pytest.raises(DataError, match=message):
        draw_shares(np.array(files), ["a", "b"], shares, seed=0)


def test_rows_of_rare_classes_are_repeated_up_to_a_share_of_the_largest():
    classes = np.array([0] * 10 + [1] * 3 + [2] * 6)
    drawn, line = oversample(classes, ["bug", "praise", "question"], 0.5, seed=0)
    assert drawn[:19].tolist() == list(range(19))
    assert Counter(classes[drawn].tolist()) == {0: 10, 1: 5, 2: 6}
    times = Counter(drawn.tolist())
    assert sorted(times[number] for number in (10, 11, 12)) == [1, 2, 2]
    assert line == "data.oversample: 'praise' 3 -> 5 rows (each 1 or 2 times)"


def test_a_class_with_one_row_can_be_repeated_as_often_as_the_largest():
    drawn, line = oversample(np.array([0, 0, 0, 1]), ["a", "b"], 1.0, seed=0)
    assert drawn.tolist() == [0, 1, 2, 3, 3, 3]
    assert line == "data.oversample: 'b' 1 -> 3 rows (each 3 times)"


def test_it_is_said_where_no_class_is_rare():
    drawn, line = oversample(np.array([0, 1]), ["a", "b"], 0.5, seed=0)
    assert drawn.tolist() == [0, 1]
    assert "none is repeated" in line
