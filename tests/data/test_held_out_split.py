import tracemalloc
from collections import Counter

import numpy as np
import pytest

from peftkit.data.held_out_split import split_held_out
from peftkit.data.rows import Rows
from peftkit.errors import DataError


def rows_with(labels, groups=None):
    rows = [{"label": label} for label in labels]
    for number, group in enumerate(groups or []):
        rows[number]["group"] = group
    return Rows.of(rows, "rows.jsonl")


def labels_of(rows, numbers):
    return Counter(rows[int(number)]["label"] for number in numbers)


def test_a_share_is_held_out_with_groups_kept_together():
    rows = Rows.of([{"group": i // 3, "i": i} for i in range(30)])
    split = split_held_out(rows, 0.2, seed=1)
    assert len(split.held_out) == 6
    assert not set(split.held_out // 3) & set(split.training // 3)
    assert sorted([*split.training, *split.held_out]) == list(range(30))


def test_a_seed_draws_the_same_rows_again_and_another_seed_others():
    rows = rows_with("ab" * 50)
    first = split_held_out(rows, 0.2, 1, "label").held_out.tolist()
    assert split_held_out(rows, 0.2, 1, "label").held_out.tolist() == first
    assert split_held_out(rows, 0.2, 2, "label").held_out.tolist() != first


def test_a_row_without_a_group_is_alone_whatever_the_others_groups_are_called():
    rows = Rows.of([{"group": 1}, {"group": None}, {"group": 1}, {}])
    held_out = [split_held_out(rows, 0.4, seed).held_out.tolist() for seed in range(40)]
    assert set(map(tuple, held_out)) == {(0, 2), (1,), (3,)}


def test_each_class_is_held_out_by_its_share():
    rows = rows_with(["a"] * 70 + ["b"] * 20 + ["c"] * 10)
    split = split_held_out(rows, 0.2, 0, "label")
    assert labels_of(rows, split.held_out) == {"a": 14, "b": 4, "c": 2}
    assert split.decided == [
        "data.evaluation: 20 of 100 rows are held out, a share of each class",
    ]


def test_the_largest_remainders_make_up_the_share():
    rows = rows_with(["a"] * 17 + ["b"] * 16 + ["c"] * 17)  # 1.7, 1.6 and 1.7 of five rows
    assert labels_of(rows, split_held_out(rows, 0.1, 0, "label").held_out) == {
        "a": 2, "b": 1, "c": 2,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_class_with_two_rows_is_on_both_sides(seed):
    rows = rows_with(["often"] * 98 + ["rare"] * 2)
    split = split_held_out(rows, 0.1, seed, "label")
    assert labels_of(rows, split.held_out) == {"often": 9, "rare": 1}
    assert labels_of(rows, split.training) == {"often": 89, "rare": 1}


def test_a_class_with_one_row_stays_in_the_training_and_is_named():
    rows = rows_with(["often"] * 9 + ["once"])
    split = split_held_out(rows, 0.5, 0, "label")
    assert labels_of(rows, split.held_out) == {"often": 5}
    assert split.decided[1] == (
        "data.evaluation: a class with a single row stays in the training rows: 'once' "
        "(row 10 of rows.jsonl)"
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_classes_keep_their_shares_as_nearly_as_they_can(seed):
    labels = np.random.default_rng(seed).choice(["a", "b", "c"], 600, p=[0.6, 0.3, 0.1]).tolist()
    rows = rows_with(labels, [number // 4 for number in range(600)])
    split = split_held_out(rows, 0.2, seed, "label")
    assert not set(split.held_out // 4) & set(split.training // 4)
    all_rows, held_out = Counter(labels), labels_of(rows, split.held_out)
    for label, count in all_rows.items():
        assert held_out[label] == pytest.approx(0.2 * count, abs=5)


def test_groups_that_keep_a_class_out_of_the_held_out_rows_win_and_it_is_said():
    rows = rows_with(["a"] * 20 + ["b"] * 5, [*range(20), *[99] * 5])
    split = split_held_out(rows, 0.2, 0, "label")
    assert labels_of(rows, split.training)["b"] == 5  # all rows of b are in one group
    assert split.decided[-1] == (
        "data.evaluation: no row of 'b' is held out, since groups stay together"
    )


def test_large_groups_hold_out_the_nearest_one_to_the_share():
    rows = rows_with("ab" * 30, [0] * 10 + [1] * 20 + [2] * 30)
    assert split_held_out(rows, 0.05, 0, "label").held_out.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("labels", "groups", "column"),
    [
        (["a"], None, "label"),
        (["a"], None, None),
        (["a", "b"], None, "label"),  # each has a single row
        (["a"] * 10, ["one"] * 10, "label"),
        (["a"] * 10, ["one"] * 10, None),
        (["a"] * 5 + ["b"] * 5, [1] * 5 + [2] * 5, "label"),  # a whole class would be held out
    ],
)
def test_a_split_that_leaves_one_side_empty_is_refused(labels, groups, column):
    with pytest.raises(DataError, match="leaves nothing to train on or to hold out"):
        split_held_out(rows_with(labels, groups), 0.2, 0, column)


@pytest.mark.parametrize("column", [None, "label"])
def test_memory_grows_by_some_bytes_for_each_row(column):
    count = 200_000
    rows = Rows(lambda number: {"label": number % 7, "group": number // 2}, count, str, str)
    tracemalloc.start()
    split_held_out(rows[: count // 2], 0.1, 0, column)
    half = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    split_held_out(rows, 0.1, 0, column)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / count < 60
    assert half < peak
