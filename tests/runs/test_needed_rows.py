from itertools import pairwise

import pytest

from peftkit.data.rows import Rows
from peftkit.runs.measuring import sample_of_training
from peftkit.runs.needed_rows import encode_needed


class Encoder:
    """Makes as many examples of a row as its number asks for, and remembers what it was given."""

    def __init__(self, examples_of=lambda number: 1):
        self.examples_of = examples_of
        self.calls = []

    def __call__(self, rows):
        numbers = [row["number"] for row in rows]
        self.calls.append(numbers)
        examples = []
        for number in numbers:
            examples += [number] * self.examples_of(number)
        return examples


def rows_of(count):
    return Rows.of([{"number": number} for number in range(count)])


@pytest.mark.parametrize("count", [None, 100, 101])
def test_all_rows_are_taken_where_as_many_are_needed(count):
    rows, encoder = rows_of(100), Encoder()
    needed = encode_needed(rows, count, 0, encoder)
    assert encoder.calls == [list(range(100))]
    assert needed.rows is rows
    assert needed.share == 1


def test_no_more_rows_are_read_than_are_needed():
    needed = encode_needed(rows_of(1000), 80, 0, Encoder())
    assert len(needed.rows) == 80
    assert len(set(needed.examples)) == 80
    assert needed.share == 0.08


def test_the_draw_is_random_and_the_same_each_time():
    draws = [encode_needed(rows_of(1000), 80, seed, Encoder()).examples for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != sorted(draws[0])
    assert max(draws[0]) > 800  # not the first rows


def test_twice_as_many_rows_are_drawn_while_there_are_too_few_examples():
    encoder = Encoder(lambda number: 1 if number % 3 == 0 else 0)
    needed = encode_needed(rows_of(1000), 50, 0, encoder)
    assert len(needed.examples) >= 50
    sizes = [len(call) for call in encoder.calls]
    assert sizes == [50 * 2**each for each in range(len(sizes))]
    assert len(sizes) > 1
    for few, more in pairwise(encoder.calls):
        assert more[: len(few)] == few  # the same draw, continued


def test_all_rows_are_the_most_that_are_drawn():
    needed = encode_needed(rows_of(100), 60, 0, Encoder(lambda number: int(number < 10)))
    assert sorted(needed.examples) == list(range(10))
    assert needed.share == 1


def test_a_row_may_give_several_examples():
    encoder = Encoder(lambda number: 5)
    assert len(encode_needed(rows_of(100), 10, 0, encoder).examples) == 50
    assert len(encoder.calls) == 1


@pytest.mark.parametrize("count", [1, 255, 256])
def test_few_training_rows_are_all_measured(count):
    rows = rows_of(count)
    assert sample_of_training(rows) is rows


@pytest.mark.parametrize("count", [257, 400, 300_000])
def test_of_many_training_rows_256_are_measured_evenly_spread(count):
    numbers = [row["number"] for row in sample_of_training(rows_of(count))]
    assert len(set(numbers)) == 256
    gaps = [after - before for before, after in pairwise(numbers)]
    assert max(gaps) - min(gaps) <= 1
    assert numbers[0] < count / 256
    assert numbers[-1] >= count - 1 - count / 256
