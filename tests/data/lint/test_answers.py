import pytest

from peftkit.data.lint.answers import (
    find_cut_answers,
    find_empty_answers,
    find_repeated_answers,
    find_short_answers,
)
from peftkit.data.lint.items import LintItem

LONG = "The library opens at nine and closes at six, and on Sundays it is closed all day."


def items(*answers):
    found = []
    for number, answer in enumerate(answers, 1):
        found.append(LintItem(f"a.jsonl, row {number}", f"question {number}", answer=answer))
    return found


def test_an_answer_of_white_space_is_empty():
    (finding,) = find_empty_answers(items(LONG, "", " \n\u3000", LONG))
    assert (finding.count, finding.rows) == (2, ("a.jsonl, row 2", "a.jsonl, row 3"))


def test_a_label_a_score_and_an_image_are_no_empty_answers():
    labelled = LintItem("a, row 1", "a text", labels=("label",))
    image = LintItem("a, row 2", file="cat.png")
    assert find_empty_answers([labelled, image]) == []


def test_an_empty_text_that_is_learned_is_an_empty_answer():
    (finding,) = find_empty_answers([LintItem("a, row 1", answer=" ")])
    assert finding.sentence.startswith("1 text is empty")


def test_few_short_answers_among_long_ones_are_found():
    (finding,) = find_short_answers(items(*[LONG] * 40, "N/A", "..."))
    assert (finding.count, finding.rows) == (2, ("a.jsonl, row 41", "a.jsonl, row 42"))
    assert f"half of all have {len(LONG)} or more" in finding.sentence


@pytest.mark.parametrize(
    "answers",
    [
        ["Yes", "No", "Yes", "42"],
        [LONG] * 10 + ["Yes", "No"],  # a sixth of the rows
        [LONG] * 40 + ["Paris"],
        [],
    ],
)
def test_short_answers_that_are_meant_are_not_found(answers):
    assert find_short_answers(items(*answers)) == []


def test_an_answer_to_many_questions_is_quoted():
    refusal = "I am sorry, but I cannot help with that."
    (finding,) = find_repeated_answers(items(LONG, *[refusal] * 5, f"{LONG} Always."))
    assert finding.sentence.startswith(
        f'5 rows with different texts have the same answer, "{refusal}"'
    )


@pytest.mark.parametrize(
    "rows",
    [
        items(*["Yes."] * 50),
        items(*[LONG] * 4),
        items(*[LONG] * 5, *[f"{LONG} Really {number}." for number in range(600)]),
        items(*[LONG] * 5)[:1] * 9,  # a copied row is another finding
    ],
)
def test_an_answer_that_is_short_rare_or_of_a_copied_row_is_not_repeated(rows):
    assert find_repeated_answers(rows) == []


def test_cut_answers_are_counted_by_encoding():
    assert find_cut_answers({"answers_cut": 0, "truncated": 7, "rows": 9}) == []
    (finding,) = find_cut_answers({"answers_cut": 12, "rows": 1_000})
    assert finding.sentence.startswith(
        "12 of 1,000 rows lose the end of an answer at data.max_length: raise it"
    )
