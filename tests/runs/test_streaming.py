"""Runs that read their rows forward keep what their steps need, and resume with it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftkit.config.reading import build
from peftkit.data.row_files import read_rows
from peftkit.data.table_rows import read_file_rows
from peftkit.errors import ConfigError
from peftkit.files import read_json
from peftkit.runs.recipes import load_recipe, recipe_named
from peftkit.runs.streaming import read_streamed
from peftkit.runs.training_rows import read_training_rows
from tests.recipes.jobs import config_values, run, write_jsonl


def streamed(tmp_path, llama_dir, *, steps=3, name="causal_lm", **data):
    values = config_values(name, tmp_path, llama_dir, count=40, steps=steps)
    values["train"] |= {"batch_size": 2, "accumulate": 2, "epochs": 1}
    values["data"] |= {"streaming": True} | data
    return values


def losses(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "gradient_norm" in line]


def test_a_run_keeps_the_rows_that_its_steps_need(tmp_path, llama_dir):
    values = streamed(tmp_path, llama_dir)
    directory = run("causal_lm", values)
    rows = read_rows(directory / "streamed_rows.jsonl")
    assert len(rows) == 3 * 2 * 2
    given = list(read_rows(values["data"]["train"]))
    assert all(row in given for row in rows)
    assert list(rows) != given[:12]
    said = read_json(directory / "rows.json")["decided"]
    assert any("data.streaming: 12 rows of" in line for line in said)


def test_rows_come_again_where_the_steps_take_more_than_there_are(tmp_path, llama_dir):
    directory = run("causal_lm", streamed(tmp_path, llama_dir, steps=11))
    assert len(read_rows(directory / "streamed_rows.jsonl")) == 40
    said = read_json(directory / "rows.json")["decided"]
    assert any("the steps take 44, so rows come again" in line for line in said)
    assert len(losses(directory)) == 11


def test_a_share_is_held_out_of_the_rows_that_are_read(tmp_path, llama_dir):
    directory = run("causal_lm", streamed(tmp_path, llama_dir, evaluation=0.2))
    assert len(read_rows(directory / "streamed_rows.jsonl")) == 15
    assert len(read_rows(directory / "evaluation.jsonl")) == 3


def test_a_streamed_run_takes_the_steps_of_one_on_the_kept_rows(tmp_path, llama_dir):
    values = streamed(tmp_path, llama_dir, encoding="cp1252")
    directory = run("causal_lm", values)
    again = streamed(tmp_path, llama_dir, streaming=False)
    again["data"]["train"] = str(directory / "streamed_rows.jsonl")
    again["run_dir"] = str(tmp_path / "again")
    assert losses(run("causal_lm", again)) == losses(directory)


def test_a_preview_reads_some_rows_and_keeps_none(tmp_path, llama_dir):
    values = streamed(tmp_path, llama_dir)
    recipe = load_recipe(recipe_named("causal_lm"))
    config = build(recipe.Config, values, "a test")
    found = read_training_rows(recipe.make_task(config), config)
    assert len(found.training) == 40
    assert not Path(values["run_dir"]).exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "max_steps", None, "set train.max_steps"),
        ("data", "packing", True, "set data.packing: batch"),
        ("data", "shares", [0.5, 0.5], "leave one out"),
    ],
)
def test_what_streaming_cannot_do_is_refused(tmp_path, llama_dir, section, key, value, message):
    values = streamed(tmp_path, llama_dir)
    values[section][key] = value
    if key == "shares":
        values["data"]["train"] = ["a.jsonl", "b.jsonl"]
    with pytest.raises(ConfigError, match=message):
        build(load_recipe(recipe_named("causal_lm")).Config, values, "a test")


@pytest.mark.parametrize("is_trained", [True, False])
def test_files_that_rows_name_are_beside_the_data_and_not_beside_the_kept_rows(
    tmp_path, is_trained
):
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"")
    path = write_jsonl(tmp_path / "data" / "rows.jsonl", [{"image": "a.png"}])
    config = SimpleNamespace(
        seed=0,
        data=SimpleNamespace(train=str(path), encoding=None, evaluation=None),
        train=SimpleNamespace(max_steps=1, batch_size=1, accumulate=1),
    )
    rows, _ = read_streamed(config, tmp_path / "run" if is_trained else None)
    found = read_file_rows(rows, {}, {}, file_column="image")
    assert found[0]["image"] == str(tmp_path / "data" / "a.png")
