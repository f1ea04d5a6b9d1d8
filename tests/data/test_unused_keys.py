"""What of a row nobody reads is named."""

import json
from types import SimpleNamespace

import pytest

from peftkit.config.sections import DataSettings
from peftkit.data.unused_keys import unused_keys
from peftkit.tasks.causal_lm import CausalLMTask

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"messages": SAID, "tools": [], "weight": 2, "expect": ["yo"], "id": 7}, "chat", []),
        ({"messages": SAID, "topic": "x", "note": "", "n": 0}, "chat", ["'topic'", "'n'"]),
        ({"messages": [SAID[0], SAID[1] | {"mood": "x", "name": "Ann"}]}, "chat", ["mood"]),
        ({"messages": [each | {"mood": "x"} for each in SAID]}, "chat", ["mood"]),
        ({"messages": [SAID[0] | {"id": 7, "refusal": None, "audio": None}]}, "chat", []),
        ({"messages": "no JSON"}, "chat", []),
        ({"conversations": SAID, "system": "s", "tools": "[]"}, "sharegpt", []),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "alpaca", []),
        ({"instruction": "x", "output": "y", "text": "z"}, "alpaca", ["'text'"]),
        ({"prompt": "x", "completion": "y", "tools": [{"name": "t"}]}, "prompt-completion", "t"),
        ({"prompt": SAID, "completion": SAID, "tools": [{"name": "t"}]}, "prompt-completion", []),
        ({"prompt": SAID[:1], "completion": [SAID[1] | {"a": 1}]}, "prompt-completion", ["a"]),
        ({"text": "x", "weight": 1, "label": 1}, "text", ["'label'"]),
        ({"messages": [{"role": "system", "content": "s"}], "system": "s"}, "chat", []),
        ({"messages": [{"role": "system", "content": "s"}], "system": "x"}, "chat", ["'system'"]),
        ({"messages": [7], "system": "x"}, "chat", []),
    ],
)
def test_columns_and_keys_of_messages_that_nobody_reads_are_named(row, kind, expected):
    column = next(iter(row))
    names = {"mood": f"'mood' in {column!r}", "a": "'a' in 'completion'", "t": "'tools'"}
    assert unused_keys(row, kind) == [names.get(name, name) for name in expected]


def test_a_run_says_what_it_does_not_learn_from_and_in_how_many_rows(tokenizer, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"messages": SAID}, {"messages": [SAID[0], SAID[1] | {"mood": "x"}], "topic": "kites"}]
    file.write_text("".join(json.dumps(row | {"source": "a"}) + "\n" for row in rows))
    settings = SimpleNamespace(data=DataSettings(train=str(file)), seed=0, samples=0)
    task = CausalLMTask(settings, tokenizer)
    task.examples(task.read(str(file)))
    said = "not learned from: 'mood' in 'messages' (1 row), 'source' (2 rows), 'topic' (1 row)"
    assert said in task.remarks()
    unlabelled = task.read(str(file), labelled=False)
    assert unlabelled[1]["topic"] == "kites"
    assert "unused" not in unlabelled[1]
