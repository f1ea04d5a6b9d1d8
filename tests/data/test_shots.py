"""Solved examples before each row: read, and never learned."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from peftkit.config.reading import build
from peftkit.config.sections import DataSettings, GenerationSettings
from peftkit.data.rows import Rows
from peftkit.data.shots import draw_shots, make_shot, with_shots
from peftkit.errors import ConfigError, DataError
from peftkit.files import read_json
from peftkit.labels import IGNORED
from peftkit.runs.opening import open_run
from peftkit.runs.training_rows import read_training_rows
from peftkit.tasks.causal_lm import CausalLMTask
from tests.recipes.jobs import config_values, rows_of, run, write_jsonl


def chat(*turns, **columns):
    messages = []
    for turn in turns:
        role, _, content = turn.partition(": ")
        messages.append({"role": role, "content": content})
    return {"format": "chat", "messages": messages} | columns


def pair(number):
    return {"format": "prompt-completion", "prompt": f"{number} + 1 =", "completion": f" {number}"}


def drawn(rows, count, seed=0):
    found = draw_shots(Rows.of(rows), np.arange(len(rows)), count, seed)
    return sorted(found.tolist())


def spelled(row):
    return [f"{message['role']}: {message['content']}" for message in row["messages"]]


def test_shots_come_after_the_system_message_and_before_the_dialogue():
    shot = make_shot(chat("system: Be wise.", "user: 1?", "assistant: One."))
    row = chat("system: Be brief.", "user: 2?", "assistant: Two.")
    found = with_shots(row, [shot])
    assert spelled(found) == [
        "system: Be brief.",
        "user: 1?",
        "assistant: One.",
        "user: 2?",
        "assistant: Two.",
    ]
    assert [message.get("train") for message in found["messages"]] == [
        None,
        None,
        False,
        None,
        None,
    ]
    assert spelled(row) == ["system: Be brief.", "user: 2?", "assistant: Two."]


def test_a_prompt_follows_prompts_with_their_completions_and_a_blank_line():
    found = with_shots(pair(3), [make_shot(pair(1)), make_shot(pair(2))])
    assert found["prompt"] == "1 + 1 = 1\n\n2 + 1 = 2\n\n3 + 1 ="
    assert found["completion"] == " 3"


def test_without_shots_a_row_stays_as_it_is():
    assert with_shots(pair(1), []) == pair(1)


def test_a_seed_draws_the_same_shots_again_and_another_seed_others():
    rows = [pair(number) for number in range(50)]
    assert drawn(rows, 3, seed=1) == drawn(rows, 3, seed=1) != drawn(rows, 3, seed=2)
    assert len(set(drawn(rows, 3))) == 3


def test_only_solved_dialogues_without_tools_become_shots():
    call = chat("user: a", "assistant: b")
    call["messages"][1]["tool_calls"] = [{"type": "function"}]
    rows = [
        chat("user: open"),
        chat("assistant: first", "user: a", "assistant: b"),
        chat("user: a", "assistant: b", tools=[{"type": "function"}]),
        call,
        chat("system: s", "user: a", "assistant: b"),
        chat("user: a", "assistant: b", "user: c", "assistant: d"),
    ]
    assert drawn(rows, 2) == [4, 5]
    with pytest.raises(DataError, match="of 6 rows, 2 can be such examples"):
        drawn(rows, 3)


@pytest.mark.parametrize("count", [2, 5])
def test_shots_that_leave_no_row_to_train_on_are_refused(count):
    with pytest.raises(DataError, match="of 2 rows, 2 can be such examples"):
        drawn([pair(1), pair(2)], count)


def test_texts_have_no_shots():
    with pytest.raises(ConfigError, match=r"data\.shots is for dialogues and prompts"):
        drawn([{"format": "text", "text": "a"}] * 3, 1)


def test_a_row_of_another_format_than_the_shots_is_refused():
    with pytest.raises(DataError, match=r"shots .* are prompt-completion rows, and this is a chat"):
        with_shots(chat("user: a", "assistant: b"), [make_shot(pair(1))])


@pytest.mark.parametrize("values", [{"format": "text"}, {"loss_on": "all"}])
def test_settings_that_shots_contradict_are_refused(values):
    with pytest.raises(ConfigError, match="shots"):
        build(DataSettings, {"train": "a.jsonl", "shots": 2, **values}, "a test")


def task_for(tmp_path, tokenizer, rows, **data):
    settings = DataSettings(train=write_jsonl(tmp_path / "rows.jsonl", rows), **data)
    config = SimpleNamespace(data=settings, seed=0, generation=GenerationSettings(), samples=4)
    return CausalLMTask(config, tokenizer), config


def learned_text(tokenizer, example):
    kept = [token for token, label in zip(example.input_ids, example.labels, strict=True)
            if label != IGNORED]  # fmt: skip
    return tokenizer.decode(kept)


def test_shots_are_read_and_their_rows_are_not_learned(tmp_path, tokenizer):
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(5)]
    task, config = task_for(tmp_path, tokenizer, rows, shots=2)
    found = read_training_rows(task, config)
    assert len(found.training) == 3
    shots = task.learned["shots"]
    for row, (example,) in zip(
        found.training, task.encode(list(found.training), Counter()),
        strict=True,
    ):  # fmt: skip
        before = "".join(f"{shot['prompt']}{shot['completion']}\n\n" for shot in shots)
        text = tokenizer.decode(example.input_ids)
        assert before + row["prompt"] + row["completion"] in text
        assert learned_text(tokenizer, example).startswith(row["completion"])
        assert row["prompt"] not in [shot["prompt"] for shot in shots]
    assert found.decided[-1].startswith("data.shots puts rows ")


def test_a_question_and_a_prompt_have_the_shots_that_were_learned_with(tmp_path, tokenizer):
    rows = [
        {"messages": chat(f"user: {n}?", f"assistant: It is {n}.")["messages"]} for n in range(6)
    ]
    task, config = task_for(tmp_path, tokenizer, rows, shots=2)
    found = read_training_rows(task, config)
    task.fit(found.training)
    ((example,),) = task.encode([found.training[0]], Counter())
    text = tokenizer.decode(example.input_ids)
    question = task.question(found.training[0])
    assert question.prompt.count("It is ") == 2
    assert text.startswith(question.prompt)
    asked = found.training[0]["messages"][0]["content"]
    assert question.shown == asked
    assert task.prompt([], asked) == question.prompt
    assert learned_text(tokenizer, example).count("It is ") == 1


def test_the_prompt_that_a_report_shows_is_without_the_shots(tmp_path, tokenizer):
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(5)]
    task, config = task_for(tmp_path, tokenizer, rows, shots=2)
    found = read_training_rows(task, config)
    task.fit(found.training)
    question = task.question(found.training[0])
    assert question.shown == found.training[0]["prompt"]
    assert question.prompt.endswith(question.shown)
    assert question.prompt.count("\n\n") == 2
    assert task.prompt([], question.shown) == question.prompt


def test_a_finished_run_asks_with_its_shots_and_one_without_forgets_them(tmp_path, llama_dir):
    values = config_values("chat", tmp_path / "old", llama_dir, steps=2)
    values["data"] |= {"shots": 2, "max_length": 256}
    directory = run("chat", values)
    shots = read_json(directory / "task.json")["learned"]["shots"]
    assert [len(shot["messages"]) for shot in shots] == [2, 2]
    task = open_run(directory).task
    assert task.prompt([], "price 77?").count("It is 5.") == 2
    further = config_values("chat", tmp_path / "new", llama_dir, steps=2)
    further["start"] = str(directory)
    assert "shots" not in read_json(run("chat", further) / "task.json")["learned"]


def test_shots_are_drawn_after_the_split(tmp_path, tokenizer):
    rows = [{"messages": row["messages"]} for row in rows_of("chat", tmp_path, 20)]
    task, config = task_for(tmp_path, tokenizer, rows, shots=3, evaluation=0.2)
    found = read_training_rows(task, config)
    assert (len(found.training), len(found.held_out)) == (13, 4)
