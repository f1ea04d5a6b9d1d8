from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.config.reading import build
from peftkit.data.lint.items import LintItem
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import NAMES, config_values, rows_of, write_jsonl

ITEMS = {  # of the first row
    "text_classification": LintItem("", "good film 0", labels=("up",)),
    "text_pair": LintItem("", "likes sea", "sea 0", labels=("1",)),
    "token_classification": LintItem("", "0 Anna saw Rome", labels=("PER", "LOC")),
    "causal_lm": LintItem("", answer="the price of kite number 0 is 0 pounds "),
    "chat": LintItem("", "price 0?", answer="It is 5."),
    "seq2seq": LintItem("", "say 0", answer="sage 0"),
    "image_classification": LintItem("", labels=("red",), file="0-red.png"),
    "speech_recognition": LintItem("", answer="low", file="0-low.wav"),
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def task(name, tmp_path, llama_dir):
    recipe = load_recipe(recipe_named(name))
    return recipe.make_task(
        build(recipe.Config, config_values(name, tmp_path, llama_dir), "a test")
    )


def test_the_lint_reads_of_each_row_what_its_task_learns(name, task):
    row = task.read(task.config.data.train)[0]
    item = task.lint_item(row, "")
    assert replace(item, file=Path(item.file).name) == ITEMS[name]


def test_the_lint_of_each_task_finds_copies_and_overlap(name, task, tmp_path):
    rows = rows_of(name, tmp_path, 6)
    training = task.read(write_jsonl(tmp_path / "a.jsonl", [*rows[:4], rows[1]]))
    held_out = task.read(write_jsonl(tmp_path / "b.jsonl", [*rows[4:], rows[2]]))
    found = {}
    for finding in task.lint(training, held_out).findings:
        found[finding.kind] = finding.rows
    directory = tmp_path
    assert found["exact duplicates"] == (f"{directory}/a.jsonl, row 5 = row 2",)
    assert found["overlap"] == (f"{directory}/b.jsonl, row 3 = a.jsonl, row 3",)
