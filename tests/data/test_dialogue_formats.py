"""Formats of dialogues: detected, converted to chat rows, checked."""

import json
import random

import pytest

from peftkit.config.sections import DataSettings
from peftkit.data.dialogue_formats import detect_format, read_text_rows
from peftkit.data.row_formats import convert_row
from peftkit.data.rows import Rows
from peftkit.data.unused_keys import unused_keys
from peftkit.errors import DataError, EmptyRowError

ROWS = [{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "é£"}]
CHAT = [
    {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
        "expect": ["yo"],
    }
]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [(CHAT, "chat"), (ROWS, "prompt-completion"), ([{"text": "x", "label": 1}], "text")],
)
def test_a_format_is_detected_by_its_columns(rows, kind):
    assert detect_format(Rows.of(rows)) == kind
    assert [convert_row(row, kind) for row in rows] == [row | {"format": kind} for row in rows]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "rows.jsonl", "no data file"),
        ("", "rows.jsonl", "cannot read|no rows"),
        ("{not json}\n", "rows.jsonl", "cannot read"),
        ("x", "rows.txt", "ends in '.txt'"),
        ('{"mesages": []}\n', "rows.jsonl", r"set data\.columns: {messages: mesages}$"),
        (
            '{"id": 1, "question": "a", "answer": "b"}\n',
            "rows.jsonl",
            r"set data\.columns: {prompt: question, completion: answer}$",
        ),
        ('{"body": "a"}\n', "rows.jsonl", r"set data\.columns: {text: body}$"),
        ('{"mine": []}\n', "rows.jsonl", r"set data\.columns: {messages: mine}$"),
        ('{"messages": []}\n', "rows.jsonl", "row 1: 'messages' holds no messages"),
        (
            '{"messages": [{"role": "asistant", "content": "x"}]}\n',
            "rows.jsonl",
            "row 1: a message is from 'asistant'.*'assistant'",
        ),
        ('{"messages": [{"role": "user"}]}\n', "rows.jsonl", "row 1: .* has no content"),
        (
            '{"prompt": "x", "completion": "y", "expect": "y"}\n',
            "rows.jsonl",
            "row 1: 'expect' is 'y'",
        ),
        ('{"text": "x"}\n{"text": null}\n', "rows.jsonl", "row 2: 'text' is empty"),
        ('{"text": "x"}\n{"text": 7}\n', "rows.jsonl", "row 2: 'text' is 7; it must be a text"),
    ],
)
def test_bad_files_get_one_clear_sentence(tmp_path, text, name, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_text_rows(DataSettings(train=""), str(tmp_path / name)))


def test_a_missing_column_names_the_nearest(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"conversations": []}\n')
    with pytest.raises(
        DataError, match=r"no column 'conversation', .*did you mean 'conversations'"
    ):
        read_text_rows(
            DataSettings(train="", columns={"messages": "conversation"}),
            str(tmp_path / "rows.jsonl"),
        )


def said(*texts):
    """Messages of system, user and assistant in turn; without a system message if the first is
    None.
    """
    roles = ["system", *("user", "assistant") * len(texts)]
    return [
        {"role": role, "content": text}
        for role, text in zip(roles, texts, strict=False)
        if text is not None
    ]


ALPACA = {"instruction": "Add.", "input": "1 + 1", "output": "2", "text": "### Instruction: ..."}
TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (ALPACA, said(None, "Add.\n\n1 + 1", "2")),
        ({"instruction": "Hi", "output": "yo", "expect": ["yo"]}, said(None, "Hi", "yo")),
        (ALPACA | {"input": None, "system": "Be brief."}, said("Be brief.", "Add.", "2")),
        (
            ALPACA | {"input": "", "history": [["a", "b"], ["c", "d"]]},
            said(None, "a", "b", "c", "d", "Add.", "2"),
        ),
        ({"conversations": TURNS}, said(None, "hi", "yo")),
        ({"conversations": TURNS, "system": "Be brief."}, said("Be brief.", "hi", "yo")),
        (
            {"conversations": [{"from": "system", "value": "s"}, *TURNS], "system": "x"},
            said("s", "hi", "yo"),
        ),
        ({"conversations": said("s", "hi", "yo")}, said("s", "hi", "yo")),
        (
            {
                "conversations": [
                    *TURNS,
                    {"from": "observation", "value": "{}"},
                    {"from": "gpt", "value": "so"},
                ]
            },
            [
                *said(None, "hi", "yo"),
                {"role": "tool", "content": "{}"},
                {"role": "assistant", "content": "so"},
            ],
        ),
    ],
)
def test_alpaca_and_sharegpt_rows_become_chats(tmp_path, row, messages):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": 7}) + "\n")
    rows = read_text_rows(DataSettings(train=""), str(path))
    assert [each["format"] for each in rows] == ["chat", "chat"]
    assert [each["messages"] for each in rows] == [messages, messages]
    assert rows[1]["id"] == 7
    assert rows[0].get("expect") == row.get("expect")


@pytest.mark.parametrize(
    "row", [ALPACA | {"history": [["a", "b"]]}, {"conversations": TURNS, "system": "s"}]
)
def test_rows_that_are_written_out_are_read_again_as_they_were(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (first,) = read_text_rows(DataSettings(train=""), str(path))
    path.write_text(json.dumps(first) + "\n")
    (again,) = read_text_rows(DataSettings(train=""), str(path))
    assert again == first


@pytest.mark.parametrize("answer", [{}, {"output": None}, {"output": ""}])
def test_questions_alone_keep_their_columns_and_get_no_answer(tmp_path, answer):
    path = tmp_path / "rows.jsonl"
    row = {"instruction": "Add.", "input": "1 + 1", "id": 7} | answer
    path.write_text(json.dumps(row) + "\n")
    settings = DataSettings(train="", columns={"expect": "facts"})
    expected = row | {"format": "chat", "messages": said(None, "Add.\n\n1 + 1")}
    assert read_text_rows(settings, str(path), labelled=False) == [expected]
    path.write_text('{"prompt": "x", "completion": null}\n')
    assert read_text_rows(settings, str(path), labelled=False) == [
        {"format": "prompt-completion", "prompt": "x", "completion": ""}
    ]
    with pytest.raises(DataError, match="no column 'facts'"):
        read_text_rows(settings, str(path))


def test_a_format_can_be_named_where_the_columns_are_those_of_several(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ALPACA) + "\n")
    (row,) = read_text_rows(DataSettings(train="", format="text"), str(path))
    assert (row["format"], row["text"]) == ("text", "### Instruction: ...")
    assert row["unused"] == ["'instruction'", "'input'", "'output'"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ALPACA | {"output": 7}, "^'output' is 7; it must be a text"),
        (
            ALPACA | {"instruction": "", "input": ""},
            "^there is neither an instruction nor an input",
        ),
        (ALPACA | {"history": [["a"]]}, r"^'history' is \[\['a'\]\]"),
        (ALPACA | {"history": "[{}]"}, r"^'history' is '\[{}\]'"),
        (ALPACA | {"history": [["a", None]]}, "^an answer is None; it must be a text"),
        (ALPACA | {"system": 7}, "^'system' is 7; it must be a text"),
        (ALPACA | {"weight": 0}, "^'weight', the row's weight in the loss, is 0"),
        (ALPACA | {"weight": "heavy"}, "^'weight', the row's weight in the loss, is 'heavy'"),
        ({"conversations": ["hi"]}, "^'hi' is not a message"),
        (
            {"conversations": [{"from": "humam", "value": "x"}]},
            "^a message is from 'humam'.*did you mean 'human'",
        ),
        ({"conversations": [{"from": "human"}]}, "^the user's message has no content"),
        ({"prompt": "x", "completion": []}, "^'prompt' is 'x'; .* must both be texts, or both"),
        ({"prompt": [], "completion": "x"}, "^'completion' is 'x'; .* must both be texts, or both"),
        ({"prompt": 7, "completion": "x"}, "^'prompt' is 7; it must be a text"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row, message):
    with pytest.raises(DataError, match=message) as refused:
        convert_row(row, detect_format(Rows.of([row])))
    assert not isinstance(refused.value, EmptyRowError)


@pytest.mark.parametrize(
    "row",
    [
        ALPACA | {"output": " "},
        ALPACA | {"output": None},
        ALPACA | {"instruction": "", "input": "", "output": ""},
        ALPACA | {"history": [["a", ""]]},
        {"conversations": []},
        {"conversations": None},
        {"conversations": ""},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]},
        {"conversations": [{"from": "human", "value": "x"}]},
        {"messages": []},
        {"messages": said(None, "hi", "\n")},
        {"messages": said(None, "hi", "yo", "so", "")},
        {"prompt": "x", "completion": ""},
        {"prompt": "x", "completion": None},
        {"prompt": [], "completion": []},
        {"prompt": said(None, "x"), "completion": said(None, "x")},
        {"text": " \n"},
        {"text": None},
    ],
)
def test_a_row_with_nothing_to_learn_is_empty(row):
    with pytest.raises(EmptyRowError, match=r"set data\.skip_empty$"):
        convert_row(row, detect_format(Rows.of([row])))


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (
            {"text": "x"},
            "chat",
            "no 'messages', and its columns are those of text: set data.format",
        ),
        ({"conversations": TURNS}, "chat", "no 'messages', and its columns are those of sharegpt"),
        ({"messages": TURNS}, "prompt-completion", "no 'prompt' or 'completion', .* those of chat"),
    ],
)
def test_a_row_of_another_format_is_not_taken_for_an_empty_one(row, kind, message):
    with pytest.raises(DataError, match=message) as refused:
        convert_row(row, kind)
    assert not isinstance(refused.value, EmptyRowError)


def test_an_empty_cell_of_a_csv_file_is_an_empty_prompt(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n,None\n")
    (row,) = read_text_rows(DataSettings(train=""), str(path))
    assert row == {"format": "prompt-completion", "prompt": "", "completion": "None"}
    with pytest.raises(EmptyRowError, match="row 1: 'prompt' is missing"):
        list(read_text_rows(DataSettings(train=""), str(path), labelled=False))


def test_dialogues_in_a_csv_file_are_json_texts(tmp_path):
    path = tmp_path / "rows.csv"
    said_in_csv = json.dumps(CHAT[0]["messages"]).replace('"', '""')
    path.write_text(f'messages,expect,tools\n"{said_in_csv}","[""yo""]","[{{""name"": ""f""}}]"\n')
    (row,) = read_text_rows(DataSettings(train=""), str(path))
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert row == CHAT[0] | {"format": "chat", "tools": tools}


def test_a_dialogue_without_answers_can_be_learned_as_a_whole():
    row = {"messages": said(None, "hi")}
    assert convert_row(row, "chat", loss_on="all") == row | {"format": "chat"}
    with pytest.raises(EmptyRowError, match="no message of the assistant"):
        convert_row(row, "chat")
    pair = {"prompt": said(None, "hi", "yo"), "completion": said(None, "so")}
    read = convert_row(pair, "prompt-completion", loss_on="all")
    assert read["messages"] == [*pair["prompt"], *pair["completion"]]


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
GOOD_ROWS = [
    (
        "chat",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
                {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c"},
                {"role": "assistant", "content": "yo", "reasoning": "hm", "train": True},
            ],
            "tools": [{"name": "f", "parameters": {}}],
            "chat_template_kwargs": {"enable_thinking": False},
            "weight": 0.5,
        },
    ),
    ("sharegpt", {"conversations": [*TURNS, {"from": "function_call", "value": '{"name": "f"}'}]}),
    ("alpaca", ALPACA | {"history": [["a", "b"]], "system": "s", "functions": "[]"}),
    ("prompt-completion", {"prompt": "a", "completion": "b", "expect": ["b"]}),
    ("prompt-completion", {"prompt": said("s", "hi"), "completion": said(None, "", "yo")[1:]}),
    ("text", {"text": "a"}),
]
VALUES = [
    *("role", "content", "user", "assistant", "tool", "function_call", "", " ", "\0", "\ud83d"),
    *("{}", "[]", "[{", '{"name": "f"}', '"x"', "7", "NaN", '["\\ud83d"]', [], {}, [[]], [{}]),
    *({"role": {}}, {"type": "image_url"}, None, True, False, 0, 1, 0.5, -1, 1e400, 10**400, b"x"),
]


def spoilt(whole, draw):
    """A copy of an object or list in which one value, at any depth, is another, gone, or new."""
    changed = whole.copy()
    key = draw.choice(list(whole) if isinstance(whole, dict) else range(len(whole)))
    luck = draw.random()
    if luck < 0.1:
        del changed[key]
    elif luck < 0.3 and isinstance(whole, dict):
        words = ["role", "from", "value", "train", "weight", "thinking", "function_call", "x"]
        changed[draw.choice(words)] = draw.choice(VALUES)
    elif luck < 0.8 and isinstance(whole[key], list | dict) and whole[key]:
        changed[key] = spoilt(whole[key], draw)
    else:
        changed[key] = draw.choice(VALUES)
    return changed


@pytest.mark.parametrize(("kind", "good"), GOOD_ROWS)
def test_whatever_a_row_holds_it_is_read_or_refused_with_a_sentence(kind, good):
    draw = random.Random(0)
    assert convert_row(good, kind)["format"] in ("chat", "prompt-completion", "text")
    refused = []
    for _ in range(3000):
        row = spoilt(good, draw)
        if row and draw.random() < 0.3:
            row = spoilt(row, draw)
        "".join(unused_keys(row, kind))
        try:
            read = convert_row(row, kind, labelled=draw.random() < 0.5)
        except DataError as problem:
            refused.append(str(problem))
        else:
            columns = {"chat": ["messages"], "prompt-completion": ["prompt", "completion"]}
            for column in columns.get(read["format"], ["text"]):
                json.dumps(read[column], ensure_ascii=False, allow_nan=False).encode()
    assert len(set(refused)) > 3
    for sentence in refused:
        assert "\n" not in sentence
        sentence.encode()
