import random

import numpy as np
import pytest

from peftkit.data.lint.items import LintItem
from peftkit.data.lint.near_duplicates import find_near_duplicates
from peftkit.data.lint.sketches import resemblance, sketch, split_words

STORY = (
    "The ferry to the island leaves at nine in the morning and at four in the afternoon. It takes "
    "about forty minutes, and there is a small kitchen on board that sells soup, bread and coffee. "
    "Dogs may come along if they are on a lead, and bicycles cost two coins more than a person."
)
OTHER = (
    "A good soup begins with onions that are cooked slowly in butter until they are soft and "
    "golden. Then come carrots, a little garlic and the stock, and everything is left alone for an "
    "hour while the bread is in the oven and somebody lays the table in the garden."
)
CHINESE = (
    "渡轮早上九点和下午四点开往小岛、大约需要四十分钟、船上有一个小厨房卖汤、面包和咖啡。"
    "狗可以上船、但必须拴着。自行车比人多收两个硬币。天气不好的时候、船可能晚一点开。"
)
WORDS = "kiwi", "oven", "lake", "moss", "fern", "salt", "wool", "tide", "lamp", "reed", "crow"


def items(*texts, file="train.jsonl"):
    return [LintItem(f"{file}, row {number}", text) for number, text in enumerate(texts, 1)]


def pairs(*texts, held_out=()):
    findings = find_near_duplicates(items(*texts), items(*held_out, file="test.jsonl"))
    return {finding.kind: (finding.count, finding.rows) for finding in findings}


def test_a_text_with_one_word_changed_is_found():
    changed = STORY.replace("forty", "fifty")
    assert pairs(OTHER, STORY, changed) == {"near-duplicates": (1, ("train.jsonl, row 3 = row 2",))}


def test_case_punctuation_and_white_space_make_no_difference_in_short_texts_either():
    assert pairs("Where is my order?", "where is  my order") == {
        "near-duplicates": (1, ("train.jsonl, row 2 = row 1",))
    }


def test_equal_rows_are_left_to_the_check_for_equal_rows():
    assert pairs(STORY, STORY) == {}


def test_a_held_out_row_that_is_almost_a_training_row_is_found():
    changed = STORY.replace("soup", "stew")
    assert pairs(OTHER, STORY, held_out=["Hello.", changed]) == {
        "near-overlap": (1, ("test.jsonl, row 2 = train.jsonl, row 2",))
    }


def test_held_out_rows_are_not_compared_with_each_other():
    assert pairs(OTHER, held_out=[STORY, STORY.replace("soup", "stew")]) == {}


def test_a_chinese_text_with_one_character_changed_is_found():
    changed = CHINESE.replace("九", "八")
    assert pairs(CHINESE, changed)["near-duplicates"][0] == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (STORY, OTHER),
        ("I love it 😀", "I love it 😡"),
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("Translate to German: good morning", "Translate to German: good evening"),
        (CHINESE, "汤要好喝、先把洋葱用黄油慢慢炒软、再放胡萝卜、一点大蒜和高汤、然后放一个小时。"),
        ("", "?!"),
    ],
)
def test_texts_that_share_only_some_words_are_not_found(one, other):
    assert pairs(one, other) == {}


def test_rows_that_share_a_long_template_are_not_found():
    assert pairs(*(f"{STORY} {OTHER} Now answer: what is {word}?" for word in WORDS)) == {}


def test_rows_with_a_template_and_the_same_own_part_are_found():
    rows = [f"{STORY} {word} " * 2 for word in WORDS]
    changed = OTHER.replace("garlic", "ginger")
    found = pairs(*rows, f"{STORY} {OTHER}", f"{STORY} {changed}")
    assert found["near-duplicates"] == (1, ("train.jsonl, row 13 = row 12",))


def test_the_answer_counts_as_much_as_the_question():
    rows = [
        LintItem("a.jsonl, row 1", f"{STORY} When does it leave?", answer="At nine and at four."),
        LintItem("a.jsonl, row 2", f"{STORY} May dogs come?", answer="Yes, if they are on a lead."),
        LintItem("a.jsonl, row 3", f"{STORY} May a dog come?", answer="yes if they are on a lead"),
    ]
    (finding,) = find_near_duplicates(rows)
    assert finding.rows == ("a.jsonl, row 3 = row 2",)


def test_a_long_passage_with_another_question_is_another_pair():
    rows = [
        LintItem("a.jsonl, row 1", "When does the ferry leave?", f"{STORY} {OTHER}"),
        LintItem("a.jsonl, row 2", "What does a good soup begin with?", f"{STORY} {OTHER}"),
    ]
    assert find_near_duplicates(rows) == []


def test_rows_with_different_templates_are_not_alike_without_them():
    rows = [f"{STORY} {word}." for word in WORDS] + [f"{OTHER} {word}." for word in WORDS]
    own = (
        "every lamp in this street burns until a quarter past two in the night, and then it is dark"
    )
    assert pairs(*rows, f"{STORY} {own}", f"{OTHER} {own}") == {}


def test_as_many_pairs_are_found_as_by_comparing_all():
    rng = random.Random(0)
    words = [f"w{number}" for number in range(3_000)]
    texts = []
    for _ in range(150):
        text = rng.choices(words, k=120)
        texts.append(" ".join(text))
        for place in rng.sample(range(120), rng.randint(1, 8)):
            text[place] = rng.choice(words)
        texts.append(" ".join(text))
    shingles = [sketch(text).shingles for text in texts]
    expected = 0
    for number, one in enumerate(shingles):
        expected += any(resemblance(one, other) >= 0.8 for other in shingles[:number])
    assert 30 < expected < 120  # some of the pairs, not all
    found = pairs(*texts)["near-duplicates"][0]
    assert 0.95 * expected <= found <= expected


def test_a_resemblance_is_the_share_of_common_sequences_of_three_words():
    one, other = sketch("a b c d e").shingles, sketch("b c d e f").shingles
    assert (len(one), len(other)) == (3, 3)
    assert resemblance(one, other) == 2 / 4


def test_long_texts_keep_a_thousand_hashes_that_still_show_their_resemblance():
    words = [f"w{number}" for number in range(6_000)]
    one, other = sketch(" ".join(words)).shingles, sketch(" ".join(words[:-50])).shingles
    assert len(one) == len(other) == 1_000
    assert resemblance(one, other) > 0.95


def test_words_are_in_lower_case_and_signs_count():
    assert split_words("It's 3.50 €, OK? C++ 是的。") == [
        *("it", "s", "3", "50", "€", "ok", "c", "+", "+", "是", "的")
    ]


def test_a_lone_surrogate_does_no_harm():
    assert len(sketch("\ud800 a b c").shingles) == 2
    assert sketch("\ud800").plain != sketch("").plain


def test_the_sketch_of_a_text_is_the_same_in_every_process():
    text = "one two three four five six"
    assert np.array_equal(sketch(text).shingles, sketch(text).shingles)
    assert sketch("yes").plain.hex() == "d1b1805c6d187a92"
