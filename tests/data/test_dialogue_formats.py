"""Formats of dialogues: detected, converted to chat rows, checked."""

import json

import pytest

from peftkit.config.sections import DataSettings
from peftkit.data.dialogue_formats import check_rows, convert_rows, detect_format, read_text_rows
from peftkit.errors import DataError

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
    assert detect_format(rows) == kind
    check_rows(rows, kind)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "rows.jsonl", "no data file"),
        ("", "rows.jsonl", "cannot read|no rows"),
        ("{not json}\n", "rows.jsonl", "cannot read"),
        ("x", "rows.txt", "ends in '.txt'"),
        ('{"mesages": []}\n', "rows.jsonl", "did you mean 'mesages'"),
        ('{"messages": []}\n', "rows.jsonl", "row 1: 'messages' is"),
        (
            '{"messages": [{"role": "asistant", "content": "x"}]}\n',
            "rows.jsonl",
            "row 1: role 'asistant'.*'assistant'",
        ),
        ('{"messages": [{"role": "user"}]}\n', "rows.jsonl", "row 1: .* is not a message"),
        (
            '{"prompt": "x", "completion": "y", "expect": "y"}\n',
            "rows.jsonl",
            "row 1: 'expect' is 'y'",
        ),
        ('{"text": "x"}\n{"text": null}\n', "rows.jsonl", "row 2: 'text' is None"),
    ],
)
def test_bad_files_get_one_clear_sentence(tmp_path, text, name, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_text_rows(DataSettings(train=""), str(tmp_path / name))


def test_a_missing_column_names_the_nearest(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"conversations": []}\n')
    with pytest.raises(DataError, match=r"no column 'conversation' .*did you mean 'conversations'"):
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
    rows, kind = read_text_rows(DataSettings(train=""), str(path))
    assert kind == "chat"
    assert [each["messages"] for each in rows] == [messages, messages]
    assert rows[1]["id"] == 7
    assert rows[0].get("expect") == row.get("expect")


@pytest.mark.parametrize("answer", [{}, {"output": None}, {"output": ""}])
def test_questions_alone_keep_their_columns_and_get_no_answer(tmp_path, answer):
    path = tmp_path / "rows.jsonl"
    row = {"instruction": "Add.", "input": "1 + 1", "id": 7} | answer
    path.write_text(json.dumps(row) + "\n")
    settings = DataSettings(train="", columns={"expect": "facts"})
    assert read_text_rows(settings, str(path), labelled=False) == (
        [row | {"messages": said(None, "Add.\n\n1 + 1")}],
        "chat",
    )
    path.write_text('{"prompt": "x", "completion": null}\n')
    assert read_text_rows(settings, str(path), labelled=False)[0] == [
        {"prompt": "x", "completion": ""}
    ]
    with pytest.raises(DataError, match="no column 'facts'"):
        read_text_rows(settings, str(path))


def test_chat_and_prompt_rows_are_not_converted():
    assert convert_rows(CHAT, "chat") == (CHAT, "chat")
    assert convert_rows(ROWS, "prompt-completion") == (ROWS, "prompt-completion")


def test_a_format_can_be_named_where_the_columns_are_those_of_several(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ALPACA) + "\n")
    rows, kind = read_text_rows(DataSettings(train="", format="text"), str(path))
    assert (rows, kind) == ([ALPACA], "text")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ALPACA | {"output": " "}, "row 2: an answer is empty"),
        (ALPACA | {"output": None}, "row 2: an answer is empty"),
        (ALPACA | {"output": 7}, "row 2: 'output' is 7; it must be a text"),
        (
            ALPACA | {"instruction": "", "input": ""},
            "row 2: there is neither an instruction nor an input",
        ),
        (ALPACA | {"history": [["a"]]}, r"row 2: 'history' is \[\['a'\]\]"),
        (ALPACA | {"history": [["a", ""]]}, "row 2: an answer is empty"),
        ({"conversations": []}, r"row 2: 'conversations' is \[\]"),
        ({"conversations": ["hi"]}, "row 2: 'hi' is not a message"),
        (
            {"conversations": [{"from": "humam", "value": "x"}]},
            "row 2: a message is from 'humam'.*did you mean 'human'",
        ),
        ({"conversations": [{"from": "gpt", "value": ""}]}, "row 2: an answer is empty"),
        ({"conversations": [{"from": "human"}]}, "row 2: the user's message is None"),
    ],
)
def test_bad_dialogues_are_named_by_their_row(row, message):
    good = {"conversations": TURNS} if "conversations" in row else ALPACA
    with pytest.raises(DataError, match=message):
        convert_rows([good, row], "sharegpt" if "conversations" in row else "alpaca")
