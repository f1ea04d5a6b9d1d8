"""How the rows of a run become examples, before there is a model."""

import pytest

from peftkit.config.reading import build
from peftkit.errors import DataError
from peftkit.runs.directory import Run
from peftkit.runs.recipes import load_recipe, recipe_named
from peftkit.runs.run_data import RunData
from peftkit.tasks.causal_lm import CausalLMTask
from peftkit.tasks.classification import ClassificationTask
from tests.recipes.jobs import config_values, write_jsonl


@pytest.fixture
def encoded(monkeypatch):
    """How many rows were encoded at a time, but for those on the page that shows a few."""
    monkeypatch.setattr(RunData, "_preview", lambda self, rows: None)
    counts: list[int] = []
    for kind in (CausalLMTask, ClassificationTask):
        monkeypatch.setattr(kind, "encode", counted(kind.encode, counts))
    return counts


def counted(encode, counts):
    def encode_and_count(self, rows, *arguments):
        counts.append(len(rows))
        return encode(self, rows, *arguments)

    return encode_and_count


def made(name, values):
    """The data of a run, read and encoded."""
    recipe = load_recipe(recipe_named(name))
    config = build(recipe.Config, values, "a test")
    run = Run(config)
    run.begin()
    data = RunData(recipe.make_task(config), config, run)
    data.read()
    data.fit()
    data.encode()
    return data


def values_of(name, directory, llama_dir, *, steps=None, held_out=True, **more):
    values = config_values(name, directory, llama_dir, **more)
    values["train"] = {"max_steps": steps, "batch_size": 4}
    if not held_out:
        del values["data"]["evaluation"]
    return values


def test_each_row_becomes_an_example_once(tmp_path, llama_dir, encoded):
    data = made("text_classification", values_of("text_classification", tmp_path, llama_dir))
    assert encoded == [10, 6]
    assert len(data.needed.examples) == 10
    assert len(data.measured.examples) == 6
    assert data.remarks[:1] != ["Measured on the training rows: none were held out."]


def test_few_training_rows_that_are_measured_are_not_made_again(tmp_path, llama_dir, encoded):
    values = values_of("text_classification", tmp_path, llama_dir, held_out=False)
    data = made("text_classification", values)
    assert encoded == [10]
    assert data.measured.examples is data.needed.examples
    assert "Measured on the training rows: none were held out." in data.remarks


def test_the_rows_of_an_old_task_become_examples_too(tmp_path, llama_dir, encoded):
    values = values_of("text_classification", tmp_path, llama_dir)
    rows = [{"text": "an old film", "label": "up"}] * 3
    values["data"]["retention"] = write_jsonl(tmp_path / "old.jsonl", rows)
    data = made("text_classification", values)
    assert encoded == [10, 6, 3]
    assert len(data.retained.examples) == 3


def test_steps_that_need_few_rows_read_few(tmp_path, llama_dir, encoded):
    values = values_of("text_classification", tmp_path, llama_dir, steps=2, count=50)
    data = made("text_classification", values)
    assert encoded == [8, 6]
    assert data.needed.share == 8 / 50
    assert data.task.learned["counts"] == [25, 25]  # labels are those of all rows


def test_rows_that_share_a_pack_are_drawn_until_there_are_enough(tmp_path, llama_dir, encoded):
    values = values_of("causal_lm", tmp_path, llama_dir, steps=2, count=400, held_out=False)
    values["data"] |= {"packing": True, "max_length": 512}
    data = made("causal_lm", values)
    assert encoded[:3] == [8, 16, 32]
    assert len(data.needed.examples) >= 8
    assert len(data.needed.rows) < 400


def test_rows_of_which_nothing_is_learned_stop_the_run(tmp_path, llama_dir):
    values = values_of("causal_lm", tmp_path, llama_dir, held_out=False)
    row = {"prompt": "x" * 200, "completion": "y"}  # of which 64 tokens are read
    values["data"]["train"] = write_jsonl(tmp_path / "cut.jsonl", [row] * 3)
    with pytest.raises(DataError, match="3 of 3 rows have no supervised token within 64 tokens"):
        made("causal_lm", values)


@pytest.mark.parametrize("copies", [0, 2])
def test_noisy_copies_are_kept_if_there_are_any(tmp_path, llama_dir, copies):
    values = values_of("text_classification", tmp_path, llama_dir)
    values["augment"] = {"copies": copies} | ({"swaps": 0.5} if copies else {})
    data = made("text_classification", values)
    assert len(data.needed.rows) == 10 * (1 + copies)
    assert (tmp_path / "run" / "augmented_rows.jsonl").exists() == bool(copies)


def test_a_few_rows_that_are_drawn_may_all_be_left_out(tmp_path, llama_dir, encoded):
    """Of 40 rows, 18 are cut before their answers: two that are drawn first may be such ones."""
    values = values_of("causal_lm", tmp_path, llama_dir, steps=1, held_out=False)
    cut = {"prompt": "x" * 200, "completion": "y"}
    rows = [cut if number < 18 else {"prompt": "x", "completion": "y"} for number in range(40)]
    values["data"]["train"] = write_jsonl(tmp_path / "some.jsonl", rows)
    values["train"]["batch_size"] = 2
    firsts = set()
    for seed in range(12):
        data = made("causal_lm", values | {"seed": seed, "run_dir": str(tmp_path / str(seed))})
        assert len(data.needed.examples) >= 2
        firsts.add(len(data.needed.rows))
    assert len(firsts) > 1  # for some seeds more rows had to be drawn
