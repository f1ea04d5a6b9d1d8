"""Messages, however they are written, become those that chat templates take."""

import json

import pytest

from peftkit.data.message_formats import read_messages
from peftkit.errors import DataError

CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}


@pytest.mark.parametrize(
    ("written", "role"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("human", "user"),
        ("assistant", "assistant"),
        ("gpt", "assistant"),
        ("tool", "tool"),
        ("observation", "tool"),
        ("function", "tool"),
    ],
)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("role", "value")])
def test_a_role_has_several_names(written, role, keys):
    name, content = keys
    assert read_messages([{name: written, content: "x"}], "m") == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None, "tool_calls": [CALL]}, {"content": "", "tool_calls": [CALL]}),
        ({"tool_calls": json.dumps([CALL])}, {"content": "", "tool_calls": [CALL]}),
        ({"function_call": CALL["function"]}, {"content": "", "tool_calls": [CALL]}),
        ({"content": "x", "tool_calls": []}, {"content": "x"}),
        ({"content": None}, {"content": ""}),
        ({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}, "a b"),
        ({"content": ["a ", {"type": "output_text", "text": "b", "image_url": None}]}, "a b"),
        ({"content": []}, ""),
        ({"content": "x", "reasoning_content": "hm"}, {"content": "x", "reasoning_content": "hm"}),
        ({"content": "x", "reasoning": "hm"}, {"content": "x", "reasoning_content": "hm"}),
        ({"content": "x", "thinking": "hm"}, {"content": "x", "reasoning_content": "hm"}),
        (
            {"content": "x", "reasoning": "hm", "reasoning_content": "hm"},
            {"content": "x", "reasoning_content": "hm"},
        ),
        ({"content": "x", "reasoning_content": "\n"}, {"content": "x"}),
        ({"content": "x", "weight": 0}, {"content": "x", "train": False}),
        ({"content": "x", "weight": 0.0}, {"content": "x", "train": False}),
        ({"content": "x", "train": False}, {"content": "x", "train": False}),
        ({"content": "x", "train": False, "weight": 0}, {"content": "x", "train": False}),
        ({"content": "x", "weight": 1.0}, "x"),
        ({"content": "x", "train": True, "weight": 1}, "x"),
        ({"content": "x", "train": None, "weight": None, "name": None}, "x"),
        ({"content": "x", "name": "Ann"}, {"content": "x", "name": "Ann"}),
        ({"content": "x", "id": 7, "refusal": None, "audio": None, "annotations": []}, "x"),
    ],
)
def test_an_assistants_message_keeps_what_a_template_reads(message, expected):
    if isinstance(expected, str):
        expected = {"content": expected}
    messages = read_messages([{"role": "assistant"} | message], "messages")
    assert messages == [{"role": "assistant"} | expected]


def test_a_tools_message_says_which_call_it_answers():
    written = {"role": "tool", "tool_call_id": "c1", "name": "tide", "content": "4.2 m"}
    assert read_messages([written], "messages") == [written]
    older = {"role": "function", "name": "tide", "content": "4.2 m", "weight": 0}
    assert read_messages([older], "messages") == [
        {"role": "tool", "name": "tide", "content": "4.2 m"}
    ]


@pytest.mark.parametrize("value", [CALL["function"], [CALL["function"]], CALL, [CALL]])
@pytest.mark.parametrize("write", [json.dumps, lambda value: value])
def test_a_function_call_of_llama_factory_becomes_a_tool_call(value, write):
    assert read_messages([{"from": "function_call", "value": write(value)}], "conversations") == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]}
    ]


def test_a_thought_before_a_function_call_is_its_reasoning():
    value = f"<think>\nBrest is a port.\n</think>\n\n{json.dumps(CALL['function'])}"
    (read,) = read_messages([{"from": "function_call", "value": value}], "conversations")
    assert read == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Brest is a port.",
        "tool_calls": [CALL],
    }


def test_messages_may_be_a_json_text():
    messages = [{"role": "user", "content": "hé\u2028"}]
    assert read_messages(json.dumps(messages), "messages") == messages


@pytest.mark.parametrize("text", ["\u2028\u2029\x85", "\x00", "🪁", "שלום \u200fعليكم", "e\u0301"])
def test_odd_characters_stay(text):
    messages = [{"role": "user", "content": text}]
    assert read_messages(messages, "messages") == messages


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (None, "^None is not a message with a role and a content$"),
        ({"content": "x"}, "^a message is from None, which is none of system, developer, user"),
        ({"role": {}, "content": "x"}, "^a message is from {}, which is none of"),
        ({"role": "usr", "content": "x"}, "^a message is from 'usr', .*; did you mean 'user'"),
        ({"role": "user", "from": "gpt"}, "^a message has both 'role' and 'from', .* leave one"),
        ({"role": "user"}, "^the user's message has no content: {'role': 'user'}$"),
        ({"role": "tool", "content": None}, "^the tool's message has no content"),
        (
            {"role": "assistant", "contents": "x"},
            "^the assistant's message has no content: .*did you mean 'contents'",
        ),
        (
            {"role": "assistant", "content": None, "refusal": "No."},
            "^the assistant's message has no content: .*'refusal': 'No.'}$",
        ),
        ({"role": "user", "content": 7}, "^the user's message is 7; it must be a text$"),
        ({"role": "user", "content": {"a": 1}}, "^the user's message is {'a': 1}; it must be"),
        ({"role": "user", "content": [7]}, "^the user's message has the part 7, which is not a"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "^the user's message has a part of type 'image_url'; only parts of type 'text' can",
        ),
        ({"role": "user", "content": [{"text": "x"}]}, "^the user's message has a part of type No"),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "^a text in the user's message is None; it must be a text$",
        ),
        (
            {"role": "user", "content": "half \ud83d here"},
            r"^the user's message holds half of a surrogate pair \(\\ud83d\), which is not a char",
        ),
        (
            {"role": "assistant", "content": "x", "reasoning": "\udc00"},
            r"^the reasoning of a message holds half of a surrogate pair \(\\udc00\)",
        ),
        ({"role": "assistant", "content": "x", "thinking": True}, "^the reasoning of a message is"),
        (
            {"role": "user", "content": "x", "reasoning": "hm"},
            "^the user's message has reasoning, and only an assistant's can have",
        ),
        (
            {"role": "user", "content": "x", "tool_calls": [CALL]},
            "^the user's message has tool calls, and only an assistant's can have them$",
        ),
        ({"role": "tool", "content": "x", "name": 7}, "^the 'name' of a message is 7; it must be"),
        (
            {"role": "assistant", "content": "x", "weight": 0.5},
            "^'weight' of a message is 0.5; it must be true or false, or 1 or 0$",
        ),
        ({"role": "assistant", "content": "x", "train": "no"}, "^'train' of a message is 'no'"),
        (
            {"role": "assistant", "content": "x", "train": True, "weight": 0},
            "^'train' and 'weight' of a message contradict each other",
        ),
        (
            {"role": "user", "content": "x", "train": True},
            "^the user's message is marked to be learned, and only the assistant's are",
        ),
        (
            {"from": "function_call", "value": "tide()"},
            "^'tide\\(\\)' is not JSON, as the function call must be: ",
        ),
        ({"from": "function_call"}, "^the function call is None; it must be a list of calls$"),
    ],
)
def test_a_message_that_does_not_fit_gets_one_sentence(message, sentence):
    with pytest.raises(DataError, match=sentence) as refused:
        read_messages([message], "messages")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [7, {"role": "user"}, "7", True])
def test_messages_must_be_a_list(value):
    with pytest.raises(DataError, match=r"^'messages' is .*; it must be a list of messages$"):
        read_messages(value, "messages")
