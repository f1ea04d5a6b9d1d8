"""Recipes x what people write in their rows: what is learned of a row, or why it is refused.

Every expected value is written by hand. The formats of dialogues and texts have a table of their
own, tests/data/test_format_matrix.py.
"""

import json

import pytest

from peftkit.config.reading import build
from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import config_values

ODD = "a\u2028b\u2029c\x85d 🪁 שלום \x00 e\u0301"
SKIP = "leave the row out, or set data.skip_empty"
NOTHING = f"is empty, so there is nothing to learn from it: {SKIP}"
HALF = "holds half of a surrogate pair (\\ud83d), which is not a character: write the whole "
HALF += "character, or leave it out"
NO_NAME = "it must be a text or a whole number"

GOOD = {
    "text_classification": {"text": "good", "label": "up"},
    "text_pair": {"text": "sea", "other": "sky", "label": "no"},
    "token_classification": {"tokens": ["Anna", "sails"], "tags": ["B-PER", "O"]},
    "seq2seq": {"source": "Hello", "target": "Moin"},
    "causal_lm": {"text": "The tide is high."},
}

# recipe, what a row has in place of the good values, what is read and learned
LEARNED = [
    ("text_classification", {}, "good -> up"),
    ("text_classification", {"text": ODD}, f"{ODD} -> up"),
    ("text_classification", {"label": "None"}, "good -> None"),
    ("text_classification", {"label": "null"}, "good -> null"),
    ("text_classification", {"label": ODD}, f"good -> {ODD}"),
    ("text_classification", {"label": 0}, "good -> 0"),
    ("text_classification", {"label": 2.0}, "good -> 2"),
    ("text_classification", {"label": True}, "good -> true"),
    ("text_classification", {"label": False}, "good -> false"),
    ("text_pair", {}, "sea\nsky -> no"),
    ("text_pair", {"other": ODD}, f"sea\n{ODD} -> no"),
    ("text_pair", {"label": True}, "sea\nsky -> true"),
    ("token_classification", {}, "Anna B-PER, sails O"),
    ("token_classification", {"tokens": ["e\u0301", "🪁"]}, "e\u0301 B-PER, 🪁 O"),
    ("token_classification", {"tags": ["None", "O"]}, "Anna None, sails O"),
    ("token_classification", {"tags": [1.0, 0]}, "Anna 1, sails 0"),
    ("seq2seq", {}, "Hello -> Moin"),
    ("seq2seq", {"source": ODD, "target": ODD}, f"{ODD} -> {ODD}"),
    ("causal_lm", {}, "The tide is high."),
    ("causal_lm", {"text": ODD}, ODD),
]

# recipe, what a row has in place of the good values, why it is refused
REFUSED = [
    ("text_classification", {"text": None}, f"'text' is missing: {SKIP}"),
    ("text_classification", {"text": " "}, f"'text' is blank: {SKIP}"),
    ("text_classification", {"text": 7}, "'text' is 7; it must be a text"),
    ("text_classification", {"text": ["good"]}, "'text' is ['good']; it must be a text"),
    ("text_classification", {"text": "\ud83d"}, f"'text' {HALF}"),
    ("text_classification", {"label": None}, f"the label is missing: {SKIP}"),
    ("text_classification", {"label": ""}, f"the label is blank: {SKIP}"),
    ("text_classification", {"label": 0.5}, f"'label' is 0.5; {NO_NAME}"),
    ("text_classification", {"label": ["up"]}, f"'label' is ['up']; {NO_NAME}"),
    ("text_classification", {"label": "\ud83d"}, f"'label' {HALF}"),
    ("text_pair", {"other": None}, f"'other' is missing: {SKIP}"),
    ("text_pair", {"other": ""}, f"'other' is blank: {SKIP}"),
    ("text_pair", {"other": {}}, "'other' is {}; it must be a text"),
    ("text_pair", {"other": "\ud83d"}, f"'other' {HALF}"),
    (
        "token_classification",
        {"tags": [None, "O"]},
        f"the tag of word 1, 'Anna', is None; {NO_NAME}",
    ),
    ("token_classification", {"tags": ["O"]}, "there are 2 tokens and 1 tags"),
    ("token_classification", {"tags": None}, "there are 2 tokens and no tags"),
    ("token_classification", {"tokens": [], "tags": []}, f"'tokens' holds no words: {SKIP}"),
    ("token_classification", {"tokens": ["Anna", None]}, "word 2 is None; it must be a text"),
    ("token_classification", {"tokens": ["Anna", "\ud83d"]}, f"word 2 {HALF}"),
    ("seq2seq", {"target": None}, f"'target' is missing: {SKIP}"),
    ("seq2seq", {"target": "\n"}, f"'target' is blank: {SKIP}"),
    ("seq2seq", {"source": ""}, f"'source' is blank: {SKIP}"),
    ("seq2seq", {"target": 7}, "'target' is 7; it must be a text"),
    ("seq2seq", {"target": "\ud83d"}, f"'target' {HALF}"),
    ("causal_lm", {"text": None}, f"'text' {NOTHING}"),
    ("causal_lm", {"text": ""}, f"'text' {NOTHING}"),
    ("causal_lm", {"text": 7}, "'text' is 7; it must be a text"),
    ("causal_lm", {"text": "\ud83d"}, f"'text' {HALF}"),
]


@pytest.fixture
def read(llama_dir, tmp_path):
    """A function that returns a recipe's task and the rows that it reads from a file of these."""

    def read_rows(recipe, rows):
        values = config_values(recipe, tmp_path / "job", llama_dir)
        if recipe != "seq2seq":
            values["model"]["source"] = str(llama_dir)  # its tokenizer has every byte
        script = load_recipe(recipe_named(recipe))
        task = script.make_task(build(script.Config, values, "a test"))
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return task, task.read(str(path))

    return read_rows


@pytest.mark.parametrize(("recipe", "change", "expected"), LEARNED)
def test_a_recipe_learns_what_a_row_means(recipe, change, expected, read):
    good = GOOD[recipe]
    row = good | change
    another = good | {"label": "another", "tags": ["I-PER", "I-PER"]}
    task, rows = read(recipe, [row, {key: another[key] for key in good}])
    task.fit(rows)
    example = task.examples(rows)[0]
    assert spelled(recipe, task, row, example) == expected


def spelled(recipe, task, row, example):
    """What a model reads and learns of an example, as the table above has it."""

    def decode(ids):
        return task.processor.decode(ids, skip_special_tokens=True)

    if recipe == "causal_lm":
        return decode(example.labels)
    labels = task.learned.get("labels")
    if recipe == "token_classification":
        tags = [labels[label] for label in example.labels if label != IGNORED]
        return ", ".join(f"{word} {tag}" for word, tag in zip(row["tokens"], tags, strict=True))
    learned = decode(example.labels) if recipe == "seq2seq" else labels[example.label]
    return f"{decode(example.features['input_ids'])} -> {learned}"


@pytest.mark.parametrize(("recipe", "change", "sentence"), REFUSED)
def test_a_recipe_refuses_a_row_with_its_place_and_a_sentence(recipe, change, sentence, read):
    _, rows = read(recipe, [GOOD[recipe], GOOD[recipe] | change])
    assert rows[0]
    with pytest.raises(DataError) as refused:
        rows[1]
    assert str(refused.value).endswith(f"rows.jsonl, row 2: {sentence}")


@pytest.mark.parametrize(
    "recipe", ["text_classification", "text_pair", "token_classification", "seq2seq"]
)
def test_a_recipe_says_which_columns_it_does_not_learn_from(recipe, read):
    good = GOOD[recipe] | {"id": 7, "group": "a"}
    another = good | {"label": "another"} if "label" in good else good
    task, rows = read(recipe, [good, another])
    task.fit(rows)
    assert task.notes == []
    task, rows = read(recipe, [good | {"title": "x"}, another | {"date": "y"}])
    task.fit(rows)
    assert task.notes == ["not learned from: 'title', 'date'"]
