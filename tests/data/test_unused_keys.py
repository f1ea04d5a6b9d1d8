"""What of a row nobody reads is named."""

import pytest

from peftkit.data.unused_keys import unused_keys

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
