import json

import pytest
from datasets import Dataset

from peftkit.data.formats import check_rows, detect_format, read_rows, rename_columns
from peftkit.data.loading import load_rows
from peftkit.errors import DataError
from peftkit.sections import DataSettings

ROWS = [{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "é£"}]
CHAT = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "expect": ["yo"]}]


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
    ("rows", "kind"), [(CHAT, "chat"), (ROWS, "prompt-completion"), ([{"text": "x", "label": 1}], "text")]
)
def test_formats_are_told_by_their_columns(rows, kind):
    assert detect_format(rows) == kind
    check_rows(rows, kind)


def test_columns_are_renamed():
    rows = rename_columns([{"conversation": 1, "other": 2}], {"messages": "conversation"})
    assert rows == [{"messages": 1, "other": 2}]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "rows.jsonl", "no data file"),
        ("", "rows.jsonl", "cannot read|no rows"),
        ("{not json}\n", "rows.jsonl", "cannot read"),
        ("x", "rows.txt", "ends in '.txt'"),
        ('{"mesages": []}\n', "rows.jsonl", "did you mean 'mesages'"),
        ('{"messages": []}\n', "rows.jsonl", "row 1: 'messages' is"),
        ('{"messages": [{"role": "asistant", "content": "x"}]}\n', "rows.jsonl", "row 1: role 'asistant'.*'assistant'"),
        ('{"messages": [{"role": "user"}]}\n', "rows.jsonl", "row 1: .* is not a message"),
        ('{"prompt": "x", "completion": "y", "expect": "y"}\n', "rows.jsonl", "row 1: 'expect' is 'y'"),
        ('{"text": "x"}\n{"text": null}\n', "rows.jsonl", "row 2: 'text' is None"),
    ],
)
def test_bad_files_get_one_clear_sentence(tmp_path, text, name, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_rows(DataSettings(train=""), str(tmp_path / name))


def test_a_missing_column_names_the_nearest(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"conversations": []}\n')
    with pytest.raises(DataError, match=r"no column 'conversation' .*did you mean 'conversations'"):
        load_rows(DataSettings(train="", columns={"messages": "conversation"}), str(tmp_path / "rows.jsonl"))
