from peftkit.data.lint.duplicates import find_duplicates, find_label_conflicts, find_overlap
from peftkit.data.lint.fingerprints import take_fingerprints
from peftkit.data.lint.items import LintItem, LintItems
from peftkit.data.rows import Rows


def items(*rows, file="train.jsonl"):
    """Return an item for each tuple of a text, an answer and labels."""
    found = []
    for number, (text, *rest) in enumerate(rows, 1):
        found.append(LintItem(f"{file}, row {number}", text, "", *rest))
    return found


def duplicates(*rows):
    found = find_duplicates(items(*rows), take_fingerprints(items(*rows)))
    return [(finding.count, finding.rows) for finding in found]


def conflicts(*rows):
    found = find_label_conflicts(items(*rows), take_fingerprints(items(*rows)))
    return [(finding.count, finding.rows) for finding in found]


def overlap(training, held_out):
    ours, theirs = items(*training), items(*held_out, file="test.jsonl")
    found = find_overlap(ours, take_fingerprints(ours), theirs, take_fingerprints(theirs))
    return [(finding.count, finding.rows) for finding in found]


def test_each_copy_is_named_with_the_row_before_it():
    rows = [("hello",), ("bye",), ("hello",), ("hello",), ("bye",)]
    assert duplicates(*rows) == [
        (
            3,
            (
                "train.jsonl, row 3 = row 1",
                "train.jsonl, row 4 = row 3",
                "train.jsonl, row 5 = row 2",
            ),
        )
    ]


def test_another_answer_or_label_makes_another_row():
    assert duplicates(("hello", "hi"), ("hello", "good day"), ("hello",), ("hell", "o", ())) == []
    assert duplicates(("hello", None, ("a",)), ("hello", None, ("b",))) == []


def test_no_text_runs_into_the_next_part_of_a_row():
    assert duplicates(("a", ""), ("a", None), ("", "a"), ("a\0", None), ("a\1", None)) == []


def test_a_row_that_is_drawn_twice_is_no_copy():
    def item(row, where):
        return LintItem(where, row["text"])

    rows = Rows.of([{"text": "one"}, {"text": "two"}, {"text": "one"}], "a.jsonl")
    drawn = LintItems(rows.select([1, 0, 1, 2, 1]), item)
    found = find_duplicates(drawn, take_fingerprints(drawn))
    assert [finding.rows for finding in found] == [("a.jsonl, row 3 = row 1",)]
    twice = list(drawn)[:3]
    assert find_duplicates(twice, take_fingerprints(twice)) == []


def test_empty_rows_are_no_copies_of_each_other():
    assert duplicates(("", ""), ("", "")) == []


def test_equal_image_files_are_copies_and_rows_without_text_are_not():
    one, two = LintItem("a, row 1", file="one.png"), LintItem("a, row 2", file="two.png")
    again = LintItem("a, row 3", file="one.png")
    found = find_duplicates([one, two, again], take_fingerprints([one, two, again]))
    assert [finding.rows for finding in found] == [("a, row 3 = row 1",)]


def test_a_text_with_two_labels_is_a_conflict():
    rows = [("x", None, ("a",)), ("y", None, ("a",)), ("x", None, ("b",)), ("x", None, ("b",))]
    assert conflicts(*rows) == [(1, ("train.jsonl, row 3 = row 1",))]
    assert conflicts(("x", None, ("a",)), ("x", None, ("a",)), ("y", None, ("b",))) == []
    assert conflicts(("x", "1"), ("x", "2")) == []


def test_a_held_out_row_among_the_training_rows_is_found_with_any_label():
    training = [("x", None, ("a",)), ("y", None, ("a",)), ("y", None, ("a",))]
    held_out = [("z", None, ("a",)), ("y", None, ("b",))]
    assert overlap(training, held_out) == [(1, ("test.jsonl, row 2 = train.jsonl, row 2",))]


def test_a_question_with_another_answer_is_no_overlap():
    assert overlap([("Tell me a joke", "No.")], [("Tell me a joke", "A horse walks in.")]) == []
    assert overlap([], [("a",)]) == overlap([("a",)], []) == []
