"""Formats x what people write in them: the row that it becomes, and the text that is learned.

Every expected value is written by hand. A sentence in place of one says why the row is refused.
"""

import json
from collections import Counter

import pytest

from peftkit.data.row_formats import convert_row
from peftkit.data.supervised_tokens import render_batch
from peftkit.errors import DataError
from peftkit.labels import IGNORED

# ChatML with tools: the schemas are in a system turn, and calls behind the content.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "<|im_end|>"


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(content):
    return {"role": "tool", "content": content}


def human(value):
    return {"from": "human", "value": value}


def gpt(value, **more):
    return {"from": "gpt", "value": value, **more}


def chat(*messages, **more):
    return {"format": "chat", "messages": list(messages), **more}


def pair(prompt, completion, **more):
    return {"format": "prompt-completion", "prompt": prompt, "completion": completion, **more}


def plain(text, **more):
    return {"format": "text", "text": text, **more}


SCHEMA = {"name": "tide", "parameters": {"type": "object", "properties": {"port": {}}}}
TOOL = {"type": "function", "function": SCHEMA}
BREST = {"name": "tide", "arguments": {"port": "Brest"}}
CALL = {"type": "function", "function": BREST}
CALLED = '<call>{"name": "tide", "arguments": {"port": "Brest"}}</call><|im_end|>'
ODD = "a\u2028b\u2029c\x85d 🪁 שלום \x00 e\u0301"
PARTS = [{"type": "text", "text": "At "}, {"type": "text", "text": "noon."}]
IMAGE = [{"type": "image_url", "image_url": {"url": "kite.png"}}]

HALF_CALL = {"name": "tide", "arguments": {"port": "\ud83d"}}

EMPTY = "an answer is empty, so there is nothing to learn from it: leave the row out, or set "
EMPTY += "data.skip_empty"
NO_COMPLETION = EMPTY.replace("an answer", "'completion'")
NO_TEXT = EMPTY.replace("an answer", "'text'")
HALF = "holds half of a surrogate pair (\\ud83d), which is not a character: write the whole "
HALF += "character, or leave it out"

# situation: format: what is in the file, the row that it becomes, the texts that are learned; or
# what is in the file and why it is refused.
MATRIX = {
    "the assistant speaks first": {
        "chat": (
            {"messages": [assistant("Welcome."), user("When?"), assistant("At noon.")]},
            chat(assistant("Welcome."), user("When?"), assistant("At noon.")),
            ["Welcome." + END, "At noon." + END],
        ),
        "prompt-completion": (
            {"prompt": "", "completion": "Welcome."},
            pair("", "Welcome."),
            ["Welcome." + END],
        ),
        "conversational": (
            {"prompt": [], "completion": [assistant("Welcome.")]},
            chat(assistant("Welcome.")),
            ["Welcome." + END],
        ),
        "alpaca": (
            {"history": [["", "Welcome."]], "instruction": "When?", "output": "At noon."},
            chat(user(""), assistant("Welcome."), user("When?"), assistant("At noon.")),
            ["Welcome." + END, "At noon." + END],
        ),
        "sharegpt": (
            {"conversations": [gpt("Welcome."), human("When?"), gpt("At noon.")]},
            chat(assistant("Welcome."), user("When?"), assistant("At noon.")),
            ["Welcome." + END, "At noon." + END],
        ),
        "llama-factory": (
            {
                "conversations": [
                    {"from": "function_call", "value": json.dumps(BREST)},
                    {"from": "observation", "value": "4.2 m"},
                    gpt("4.2 metres."),
                ],
            },
            chat(assistant("", tool_calls=[CALL]), tool("4.2 m"), assistant("4.2 metres.")),
            [CALLED, "4.2 metres." + END],
        ),
        "text": ({"text": "Welcome."}, plain("Welcome."), ["Welcome." + END]),
    },
    "an answer is empty": {
        "chat": ({"messages": [user("When?"), assistant(" ")]}, EMPTY),
        "prompt-completion": ({"prompt": "When?", "completion": "\n"}, NO_COMPLETION),
        "conversational": ({"prompt": [user("When?")], "completion": [assistant("")]}, EMPTY),
        "alpaca": ({"instruction": "When?", "output": ""}, EMPTY),
        "sharegpt": ({"conversations": [human("When?"), gpt("")]}, EMPTY),
        "llama-factory": (
            {"conversations": [human("When?"), {"from": "function_call", "value": "[]"}]},
            EMPTY,
        ),
        "text": ({"text": "  "}, NO_TEXT),
    },
    "a content is null": {
        "chat": (
            {"messages": [user("Tide?"), assistant(None, tool_calls=[CALL])]},
            chat(user("Tide?"), assistant("", tool_calls=[CALL])),
            [CALLED],
        ),
        "prompt-completion": ({"prompt": "When?", "completion": None}, NO_COMPLETION),
        "conversational": (
            {"prompt": [user("Tide?")], "completion": [assistant(None, tool_calls=[CALL])]},
            chat(user("Tide?"), assistant("", tool_calls=[CALL])),
            [CALLED],
        ),
        "alpaca": ({"instruction": "When?", "output": None}, EMPTY),
        "sharegpt": (
            {"conversations": [human(None), gpt("At noon.")]},
            "the user's message has no content: {'from': 'human', 'value': None}",
        ),
        "llama-factory": (
            {"conversations": [human("Tide?"), {"from": "function_call", "value": None}]},
            "the function call is None; it must be a list of calls",
        ),
        "text": ({"text": None}, NO_TEXT),
    },
    "there are tools": {
        "chat": (
            {"messages": [user("Tide?"), assistant("", tool_calls=[CALL])], "tools": [TOOL]},
            chat(user("Tide?"), assistant("", tool_calls=[CALL]), tools=[TOOL]),
            [CALLED],
        ),
        "prompt-completion": (
            {"prompt": "Tide?", "completion": "4.2 metres.", "tools": [TOOL]},
            pair("Tide?", "4.2 metres.", tools=[TOOL]),
            ["4.2 metres." + END],
        ),
        "conversational": (
            {
                "prompt": [user("Tide?")],
                "completion": [assistant("", tool_calls=[CALL])],
                "tools": json.dumps([SCHEMA]),
            },
            chat(user("Tide?"), assistant("", tool_calls=[CALL]), tools=[TOOL]),
            [CALLED],
        ),
        "alpaca": (
            {"instruction": "Tide?", "output": "4.2 metres.", "tools": [SCHEMA]},
            chat(user("Tide?"), assistant("4.2 metres."), tools=[TOOL]),
            ["4.2 metres." + END],
        ),
        "sharegpt": (
            {"conversations": [human("Tide?"), gpt("4.2 metres.")], "tools": json.dumps([TOOL])},
            chat(user("Tide?"), assistant("4.2 metres."), tools=[TOOL]),
            ["4.2 metres." + END],
        ),
        "llama-factory": (
            {
                "conversations": [
                    human("Tide?"),
                    {"from": "function_call", "value": json.dumps([BREST])},
                    {"from": "observation", "value": '{"height": 4.2}'},
                    gpt("4.2 metres."),
                ],
                "system": "Be brief.",
                "tools": json.dumps([SCHEMA]),
            },
            chat(
                {"role": "system", "content": "Be brief."},
                user("Tide?"),
                assistant("", tool_calls=[CALL]),
                tool('{"height": 4.2}'),
                assistant("4.2 metres."),
                tools=[TOOL],
            ),
            [CALLED, "4.2 metres." + END],
        ),
        "text": ({"text": "Tide.", "tools": []}, plain("Tide.", tools=[]), ["Tide." + END]),
    },
    "a content is a list of parts": {
        "chat": (
            {"messages": [user("When?"), assistant(PARTS)]},
            chat(user("When?"), assistant("At noon.")),
            ["At noon." + END],
        ),
        "prompt-completion": (
            {"prompt": PARTS, "completion": "At noon."},
            "'completion' is 'At noon.'; 'prompt' and 'completion' must both be texts, or both be "
            "lists of messages",
        ),
        "conversational": (
            {"prompt": [user(PARTS)], "completion": [assistant(PARTS)]},
            chat(user("At noon."), assistant("At noon.")),
            ["At noon." + END],
        ),
        "alpaca": (
            {"instruction": "When?", "output": ["At noon."]},
            "'output' is ['At noon.']; it must be a text",
        ),
        "sharegpt": (
            {"conversations": [human("When?"), gpt(PARTS)]},
            chat(user("When?"), assistant("At noon.")),
            ["At noon." + END],
        ),
        "llama-factory": (
            {"conversations": [{"from": "observation", "value": PARTS}, gpt("At noon.")]},
            chat(tool("At noon."), assistant("At noon.")),
            ["At noon." + END],
        ),
        "text": ({"text": ["At noon."]}, "'text' is ['At noon.']; it must be a text"),
    },
    "a part is an image": {
        "chat": (
            {"messages": [user(IMAGE), assistant("A kite.")]},
            "the user's message has a part of type 'image_url'; only parts of type 'text' can be "
            "read",
        ),
        "sharegpt": (
            {"conversations": [human(IMAGE), gpt("A kite.")]},
            "the user's message has a part of type 'image_url'; only parts of type 'text' can be "
            "read",
        ),
        "conversational": (
            {"prompt": [user(IMAGE)], "completion": [assistant("A kite.")]},
            "the user's message has a part of type 'image_url'; only parts of type 'text' can be "
            "read",
        ),
    },
    "not all is learned alike": {
        "chat": (
            {"messages": [user("a"), assistant("b", weight=0), user("c"), assistant("d")]},
            chat(user("a"), assistant("b", train=False), user("c"), assistant("d")),
            ["d" + END],
        ),
        "prompt-completion": (
            {"prompt": "a", "completion": "b", "weight": 0.5},
            pair("a", "b", weight=0.5),
            ["b" + END],
        ),
        "conversational": (
            {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
            chat(user("a"), assistant("b", train=False), user("c"), assistant("d")),
            ["d" + END],
        ),
        "alpaca": (
            {"instruction": "a", "output": "b", "weight": 2},
            chat(user("a"), assistant("b"), weight=2),
            ["b" + END],
        ),
        "sharegpt": (
            {"conversations": [human("a"), gpt("", train=False), human("c"), gpt("d")]},
            chat(user("a"), assistant("", train=False), user("c"), assistant("d")),
            ["d" + END],
        ),
        "llama-factory": (
            {
                "conversations": [
                    human("a"),
                    {"from": "function_call", "value": json.dumps(BREST), "train": False},
                    {"from": "observation", "value": "c"},
                    gpt("d"),
                ],
            },
            chat(
                user("a"), assistant("", tool_calls=[CALL], train=False), tool("c"), assistant("d")
            ),
            ["d" + END],
        ),
        "text": ({"text": "a", "weight": 0.5}, plain("a", weight=0.5), ["a" + END]),
    },
    "the characters are odd": {
        "chat": (
            {"messages": [user(ODD), assistant(ODD)]},
            chat(user(ODD), assistant(ODD)),
            [ODD + END],
        ),
        "prompt-completion": (
            {"prompt": ODD, "completion": ODD},
            pair(ODD, ODD),
            [ODD + END],
        ),
        "conversational": (
            {"prompt": [user(ODD)], "completion": [assistant(ODD)]},
            chat(user(ODD), assistant(ODD)),
            [ODD + END],
        ),
        "alpaca": (
            {"instruction": ODD, "output": ODD},
            chat(user(ODD), assistant(ODD)),
            [ODD + END],
        ),
        "sharegpt": (
            {"conversations": [human(ODD), gpt(ODD)]},
            chat(user(ODD), assistant(ODD)),
            [ODD + END],
        ),
        "llama-factory": (
            {"conversations": [{"from": "observation", "value": ODD}, gpt(ODD)]},
            chat(tool(ODD), assistant(ODD)),
            [ODD + END],
        ),
        "text": ({"text": ODD}, plain(ODD), [ODD + END]),
    },
    "a character is halved": {
        "chat": (
            {"messages": [user("half \ud83d"), assistant("b")]},
            f"the user's message {HALF}",
        ),
        "prompt-completion": ({"prompt": "\ud83d", "completion": "b"}, f"'prompt' {HALF}"),
        "conversational": (
            {"prompt": [user("a")], "completion": [assistant("\ud83d")]},
            f"the assistant's message {HALF}",
        ),
        "alpaca": ({"instruction": "a", "output": "b", "input": "\ud83d"}, f"'input' {HALF}"),
        "sharegpt": (
            {"conversations": [human("a"), gpt("\ud83d")]},
            f"the assistant's message {HALF}",
        ),
        "llama-factory": (
            {"conversations": [{"from": "function_call", "value": json.dumps(HALF_CALL)}]},
            f"a call of 'tide' {HALF}",
        ),
        "text": ({"text": "\ud83d"}, f"'text' {HALF}"),
    },
}
KINDS = {"conversational": "prompt-completion", "llama-factory": "sharegpt"}


def cells():
    for situation, formats in MATRIX.items():
        for name, (row, *expected) in formats.items():
            yield pytest.param(KINDS.get(name, name), row, expected, id=f"{name}: {situation}")


def learned_texts(row, tokenizer):
    """The texts of a row that are learned: runs of labels, decoded."""
    ((example,),) = render_batch([row], row["format"], tokenizer, max_length=512, counts=Counter())
    runs, run = [], []
    for label in [*example.labels, IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return runs


@pytest.mark.parametrize(("kind", "row", "expected"), list(cells()))
def test_a_row_becomes_what_it_means_and_its_answers_are_learned(kind, row, expected, tokenizer):
    if len(expected) == 1:
        with pytest.raises(DataError) as refused:
            convert_row(row, kind)
        assert str(refused.value) == expected[0]
        return
    becomes, learned = expected
    read = convert_row(row, kind)
    assert {column: read.get(column) for column in becomes} == becomes
    tokenizer.chat_template = TEMPLATE
    assert learned_texts(read, tokenizer) == learned
