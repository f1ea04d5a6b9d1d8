import datetime
import json
import sys

import pytest
from datasets import Dataset

from peftkit.config.sections import DataSettings
from peftkit.data.dialogue_formats import check_rows, convert_rows, detect_format, read_text_rows
from peftkit.data.row_files import read_rows, rename_columns
from peftkit.errors import DataError
from peftkit.files import write_rows

ROWS = [{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "é£"}]
CHAT = [
    {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
        "expect": ["yo"],
    }
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    data = Dataset.from_list(ROWS)
    if ending == "csv":
        data.to_csv(path)
    elif ending == "parquet":
        data.to_parquet(path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(ROWS))
    assert read_rows(path) == ROWS


def test_keys_that_only_some_messages_have_are_not_given_to_others(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": "Ann"}]},
        {"messages": [{"role": "user", "content": "b"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ("first", "other"):
        path.write_text(json.dumps({"text": text}) + "\n")
        assert read_rows(path) == [{"text": text}]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [(CHAT, "chat"), (ROWS, "prompt-completion"), ([{"text": "x", "label": 1}], "text")],
)
def test_formats_are_told_by_their_columns(rows, kind):
    assert detect_format(rows) == kind
    check_rows(rows, kind)


def test_columns_are_renamed():
    rows = rename_columns([{"conversation": 1, "other": 2}], {"messages": "conversation"})
    assert rows == [{"messages": 1, "other": 2}]
    given = [{"text": "body", "headline": "head", "label": 0}]
    assert rename_columns(given, {"text": "headline"}) == [{"text": "head", "label": 0}]
    assert rename_columns(given, {"text": "headline", "headline": "text"})[0]["headline"] == "body"
    assert (
        rename_columns(given, {"tags": "ner", "text": "body"}, optional=["tags", "text"]) == given
    )


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_is_read_as_it_is_written(tmp_path, ending):
    rows = [
        {"day": "2024-05-01T10:00:00", "n": 1, "x": [1, "a"]},
        {"day": "2024-05-02", "n": "one", "x": None},
    ]
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(map(json.dumps, rows)).encode())
    assert read_rows(path) == rows
    path.write_text(
        json.dumps([{"a": "x\u2028y"}, {"b": 1}], ensure_ascii=False, indent=1), encoding="utf-8"
    )
    assert read_rows(path) == [{"a": "x\u2028y", "b": None}, {"a": None, "b": 1}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n{"a": 1\n', r"rows\.jsonl, line 2: Expecting"),
        (b'[{"a": 1},\n{"a" 1}]', r"rows\.jsonl, line 2: Expecting"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"rows\.jsonl, line 2: .*decode"),
        (b'{"a": 1}\n\n7\n', r"rows\.jsonl, row 3: 7 is not an object"),
        (b'[{"a": 1}, "x"]', r"rows\.jsonl, row 2: 'x' is not an object"),
        (b"[" * 100_000, r"rows\.jsonl, line 1: .*recursion"),
        (b"\n \n", "holds no rows"),
        (b"[]", "holds no rows"),
    ],
)
def test_bad_json_is_named_with_its_line(tmp_path, data, message):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_dates_of_a_table_can_be_written(tmp_path):
    Dataset.from_list([{"day": datetime.datetime(2024, 5, 1)}]).to_parquet(
        tmp_path / "rows.parquet"
    )
    write_rows(tmp_path / "rows.jsonl", read_rows(tmp_path / "rows.parquet"))
    assert read_rows(tmp_path / "rows.jsonl") == [{"day": "2024-05-01 00:00:00"}]


def test_without_the_datasets_library_tables_name_the_extra(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text\nx\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert read_rows(tmp_path / "rows.jsonl") == [{"text": "x"}]
    with pytest.raises(DataError, match=r"pip install 'peftkit\[recipes\]'"):
        read_rows(tmp_path / "rows.csv")


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


def test_other_rows_are_not_converted():
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
