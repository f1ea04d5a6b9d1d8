"""Every recipe reads the same rows from every kind of source, and trains on them."""

import csv
import json
from pathlib import Path

import openpyxl
import pytest
from datasets import Dataset

from peftkit.config.reading import build
from peftkit.errors import DataError
from peftkit.files import read_json
from peftkit.runs.opening import open_run
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import NAMES, config_values, rows_of, run

FLAT = ("text_classification", "text_pair", "causal_lm", "seq2seq", "image_classification")


def task_of(name, directory, llama_dir, **data):
    values = config_values(name, directory, llama_dir)
    values["data"] |= data
    recipe = load_recipe(recipe_named(name))
    return recipe.make_task(build(recipe.Config, values, "a test"))


def write_table(path, rows, delimiter=",", encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_reads_files_directories_patterns_and_objects(
    tmp_path, llama_dir, name, monkeypatch
):
    task = task_of(name, tmp_path, llama_dir)
    rows = rows_of(name, tmp_path, 10)
    expected = list(task.read(str(tmp_path / "train.jsonl")))
    assert len(expected) == 10
    files = tmp_path / "files"
    files.mkdir()
    for file in [*tmp_path.glob("*.png"), *tmp_path.glob("*.wav")]:
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / file.name).write_bytes(file.read_bytes())
    for half, part in enumerate((rows[:5], rows[5:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (files / f"train-{half}.jsonl").write_text(text)
        (tmp_path / f"half-{half}.jsonl").write_text(text)
    assert list(task.read(f"{tmp_path}/half-*.jsonl")) == expected
    assert list(task.read([f"{tmp_path}/half-{half}.jsonl" for half in (0, 1)])) == expected
    monkeypatch.chdir(tmp_path)  # to which the files that objects name are relative
    assert list(task.read(rows)) == expected
    assert list(task.read([rows[:5], rows[5:]])) == expected
    assert list(task.read(Dataset.from_list(rows))) == expected
    if name not in ("image_classification", "speech_recognition"):  # files are relative to it
        assert list(task.read(files)) == list(task.read("files:train")) == expected


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("ending", ["csv", "tsv", "xlsx", "parquet"])
def test_tables_give_every_recipe_the_same_examples(tmp_path, llama_dir, name, ending):
    task = task_of(name, tmp_path, llama_dir)
    rows = rows_of(name, tmp_path, 10)
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif ending == "xlsx":
        book = openpyxl.Workbook()
        for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
            book.active.append(row)
        book.save(path)
    else:
        write_table(path, rows, "," if ending == "csv" else "\t")
    expected, found = task.read(str(tmp_path / "train.jsonl")), task.read(str(path))
    task.fit(expected)
    examples = list(map(repr, task.examples(expected)))
    task.learned = {}
    task.fit(found)
    assert list(map(repr, task.examples(found))) == examples


@pytest.mark.parametrize("name", [name for name in NAMES if name != "image_classification"])
def test_every_recipe_takes_the_encoding_of_its_files(tmp_path, llama_dir, name):
    rows = [row | {"note": "Café"} for row in rows_of(name, tmp_path, 4)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="cp1252")
    task = task_of(name, tmp_path, llama_dir, encoding="cp1252")
    assert len(list(task.read(str(tmp_path / "rows.jsonl")))) == 4
    with pytest.raises(DataError, match=r"data\.encoding: cp1252"):
        task_of(name, tmp_path, llama_dir).read(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_names_data_columns_where_a_column_has_another_name(tmp_path, llama_dir, name):
    renamed = []
    for row in rows_of(name, tmp_path, 4):
        renamed.append({f"my {column}": value for column, value in row.items()})
    task = task_of(name, tmp_path, llama_dir)
    with pytest.raises(DataError, match=r"set data\.columns: \{\w+: \"my \w+\".*\}$"):
        list(task.read(renamed))


def test_scores_of_a_csv_file_are_learned(tmp_path, llama_dir):
    values = config_values("text_pair", tmp_path, llama_dir, steps=2)
    rows = [{"text": f"likes {i}", "other": f"sea {i}", "score": f"{i / 10}"} for i in range(10)]
    write_table(tmp_path / "rows.csv", rows, ";")
    source = str(tmp_path / "rows.csv")
    values["data"] |= {"train": source, "evaluation": source, "target": "score"}
    directory = run("text_pair", values)
    assert read_json(directory / "after.json")["metrics"].keys() >= {"loss", "pearson"}
    scores = [row["score"] for row in open_run(directory).held_out_rows()]
    assert scores == [number / 10 for number in range(10)]


def test_a_run_with_noisy_copies_keeps_odd_line_ends(tmp_path, llama_dir):
    values = config_values("text_classification", tmp_path, llama_dir, steps=2)
    rows = []
    for number, sign in enumerate(("\u2028", "\u2029", "\x85", "\x0b", "\x1e", "\r") * 2):
        rows.append({"text": f"good{sign}film {number}", "label": "up" if number % 2 else "down"})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(values["data"]["train"]).write_text(text, encoding="utf-8", newline="")
    values["augment"] = {"copies": 1, "word_dropout": 0.1}
    directory = run("text_classification", values)
    kept = (directory / "augmented_rows.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in kept[: len(rows)]] == rows
    assert len(kept) == 2 * len(rows) + 1
