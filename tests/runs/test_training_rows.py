import json
from collections import Counter
from types import SimpleNamespace

import pytest

from peftkit.config.reading import build
from peftkit.config.sections import DataSettings, TextSettings
from peftkit.errors import ConfigError, DataError, EmptyRowError
from peftkit.files import read_json
from peftkit.runs.opening import open_run
from peftkit.runs.training_rows import read_training_rows
from peftkit.tasks.causal_lm import CausalLMTask
from peftkit.tasks.classification import ClassificationTask, ScoringTask
from tests.recipes.jobs import config_values, run, write_jsonl


def config_of(data, seed=0):
    return SimpleNamespace(data=data, seed=seed)


def read_labelled(task_class=ClassificationTask, seed=0, **data):
    config = config_of(SimpleNamespace(**{**vars(TextSettings(train="")), "oversample": None}))
    vars(config.data).update(data)
    config.seed = seed
    task = task_class(
        config, head="sequence-classification", processor=None, columns=["text"],
        encode=dict, pad=dict,
    )  # fmt: skip
    return read_training_rows(task, config)


def labelled(tmp_path, name, labels):
    rows = [{"text": f"{name} {number}", "label": label} for number, label in enumerate(labels)]
    return write_jsonl(tmp_path / name, rows)


def texts(rows):
    return [row["text"] for row in rows]


def chat(question, answer):
    messages = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def test_all_rows_are_learned_in_their_order_where_nothing_else_is_asked_for(tmp_path):
    files = [labelled(tmp_path, "a.jsonl", "xy"), labelled(tmp_path, "b.jsonl", "x")]
    found = read_labelled(train=files)
    assert texts(found.training) == ["a.jsonl 0", "a.jsonl 1", "b.jsonl 0"]
    assert len(found.held_out) == 0
    assert found.decided == []


def test_the_record_says_how_many_rows_there_are_and_what_was_decided(tmp_path):
    found = read_labelled(train=labelled(tmp_path, "a.jsonl", "xy" * 10), evaluation=0.2)
    assert found.record() == {
        "training": 16,
        "held out": 4,
        "retained": 0,
        "decided": ["data.evaluation: 4 of 20 rows are held out, a share of each class"],
    }


def test_the_shares_of_files_are_those_of_the_rows_that_are_not_held_out(tmp_path):
    files = [labelled(tmp_path, "a.jsonl", "xy" * 40), labelled(tmp_path, "b.jsonl", "xy" * 10)]
    found = read_labelled(train=files, evaluation=0.2, shares=[0.5, 0.5])
    by_file = Counter(text.split()[0] for text in texts(found.training))
    assert by_file == {"a.jsonl": 40, "b.jsonl": 40}
    assert not set(texts(found.training)) & set(texts(found.held_out))
    assert found.decided[-1].startswith("data.shares: ")


def test_only_training_rows_are_repeated_for_rare_classes(tmp_path):
    train = labelled(tmp_path, "a.jsonl", "x" * 20 + "y" * 4)
    found = read_labelled(train=train, evaluation=0.5, oversample=1.0)
    assert Counter(row["label"] for row in found.training) == {"x": 10, "y": 10}
    assert Counter(row["label"] for row in found.held_out) == {"x": 10, "y": 2}
    assert found.decided[-1] == "data.oversample: 'y' 2 -> 10 rows (each 5 times)"


def test_replayed_rows_come_after_the_shares_of_the_new_ones(tmp_path):
    files = [labelled(tmp_path, "a.jsonl", "xy" * 4), labelled(tmp_path, "b.jsonl", "xy")]
    old = SimpleNamespace(train=labelled(tmp_path, "old.jsonl", "xy" * 20), share=0.5)
    found = read_labelled(train=files, shares=[0.5, 0.5], replay=old)
    assert Counter(text.split()[0] for text in texts(found.training)) == {
        "a.jsonl": 5, "b.jsonl": 5, "old.jsonl": 10,
    }  # fmt: skip


def test_the_rows_that_are_looked_at_for_mistakes_come_once_each(tmp_path):
    files = [labelled(tmp_path, "a.jsonl", "x" * 9 + "y"), labelled(tmp_path, "b.jsonl", "xy")]
    found = read_labelled(train=files, shares=[0.5, 0.5], oversample=1.0)
    learned = texts(found.training)
    assert len(learned) > len(set(learned))
    assert sorted(texts(found.distinct)) == sorted(set(learned))


def test_a_score_cannot_be_oversampled(tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "score": 1}])
    with pytest.raises(ConfigError, match=r"data\.oversample is for rows with a class"):
        read_labelled(ScoringTask, train=train, oversample=0.5)


@pytest.mark.parametrize("key", ["train", "evaluation", "retention"])
def test_empty_dialogues_are_left_out_of_every_file(tmp_path, key):
    rows = [chat("a", "b"), chat("c", ""), chat("d", "e")]
    files = {"train": write_jsonl(tmp_path / "whole.jsonl", [chat("x", "y")])}
    files[key] = write_jsonl(tmp_path / "part.jsonl", rows)
    config = config_of(DataSettings(**files, skip_empty=True))
    task = CausalLMTask(config, SimpleNamespace(pad_token_id=0))
    found = read_training_rows(task, config)
    read = {"train": found.training, "evaluation": found.held_out, "retention": found.retained}
    assert [row["messages"][0]["content"] for row in read[key]] == ["a", "d"]
    assert found.decided == [
        f"data.skip_empty left out 1 of 3 rows: row 2 of {tmp_path / 'part.jsonl'}"
    ]


def test_without_the_key_an_empty_row_stops_the_run_and_the_sentence_names_the_key(tmp_path):
    config = config_of(DataSettings(train=write_jsonl(tmp_path / "a.jsonl", [chat("a", "")])))
    task = CausalLMTask(config, SimpleNamespace(pad_token_id=0))
    with pytest.raises(EmptyRowError, match=r"row 1: .*data\.skip_empty"):
        list(read_training_rows(task, config).training)


@pytest.mark.parametrize(
    ("train", "shares", "message"),
    [
        ("a.jsonl", [0.5], "1 numbers and train names one file"),
        (["a.jsonl"], [0.5], "names one file"),
        (["a.jsonl", "b.jsonl"], [0.2, 0.3, 0.5], "3 numbers and train names 2 files"),
        (["a.jsonl", "b.jsonl"], [0.2, 0.3], "adds up to 0.5; it must add up to 1"),
    ],
)
def test_shares_that_do_not_go_with_the_files_are_refused(train, shares, message):
    with pytest.raises(ConfigError, match=message):
        build(TextSettings, {"train": train, "shares": shares}, "a test")


def test_tags_cannot_be_oversampled(tmp_path, llama_dir):
    values = config_values("token_classification", tmp_path, llama_dir)
    values["data"]["oversample"] = 0.5
    with pytest.raises(ConfigError, match="oversample"):
        run("token_classification", values)


def test_a_run_says_what_was_decided_and_keeps_it(tmp_path, llama_dir, capfd):
    values = config_values("text_classification", tmp_path, llama_dir, steps=2)
    values["data"] |= {"evaluation": 0.3, "oversample": 1.0}
    write_jsonl(
        tmp_path / "train.jsonl",
        [{"text": f"film {i}", "label": "up" if i < 15 else "down"} for i in range(20)],
    )
    directory = run("text_classification", values)
    lines = [
        "data.evaluation: 6 of 20 rows are held out, a share of each class",
        "data.oversample: 'down' 4 -> 10 rows (each 2 or 3 times)",
    ]
    said = capfd.readouterr().err
    assert all(line in said for line in lines)
    assert read_json(directory / "rows.json")["decided"] == lines
    assert read_json(directory / "task.json")["learned"]["counts"] == [10, 10]
    assert len((directory / "evaluation.jsonl").read_text().splitlines()) == 6


def test_a_finished_run_measures_its_held_out_file_without_the_empty_rows(tmp_path, llama_dir):
    values = config_values("chat", tmp_path, llama_dir, steps=2)
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(held_out.read_text() + json.dumps(chat("a", "")) + "\n")
    with pytest.raises(DataError, match=r"data\.skip_empty"):
        run("chat", values)
    values["data"]["skip_empty"] = True
    directory = run("chat", values)
    assert len(open_run(directory).held_out_rows()) == 6


def test_rows_that_are_repeated_are_no_duplicates(tmp_path, llama_dir, capfd):
    values = config_values("text_classification", tmp_path, llama_dir, steps=2)
    rows = [{"text": f"film {i}", "label": "up" if i < 15 else "down"} for i in range(20)]
    values["data"] |= {"train": write_jsonl(tmp_path / "many.jsonl", rows), "oversample": 1.0}
    values["data"]["evaluation"] = None
    values["train"] = {"max_steps": 2}
    run("text_classification", values)
    said = capfd.readouterr().err
    assert "'down' 5 -> 15 rows" in said
    assert "lint of 20 training rows: no warnings" in said
