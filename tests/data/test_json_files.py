"""JSON: lists, lines and objects are read as written; what is not JSON is named with its line."""

import json

import pytest

from peftkit.data.row_files import read_rows
from peftkit.errors import DataError


def read(tmp_path, ending, text):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_rows(path))


def test_keys_that_only_some_messages_have_are_not_given_to_others(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": "Ann"}]},
        {"messages": [{"role": "user", "content": "b"}]},
    ]
    assert read(tmp_path, "jsonl", "".join(json.dumps(row) + "\n" for row in rows)) == rows


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_values_are_read_as_they_are_written(tmp_path, ending):
    rows = [
        {"day": "2024-05-01T10:00:00", "n": 1, "x": [1, "a"]},
        {"day": "2024-05-02", "n": "one", "x": None},
    ]
    text = b"\xef\xbb\xbf" + "\r\n\n".join(map(json.dumps, rows)).encode()
    assert read(tmp_path, ending, text) == rows
    rows = [{"a": "x\u2028y\x85"}, {"b": 1.0, "c": True}]
    assert read(tmp_path, ending, json.dumps(rows, ensure_ascii=False, indent=1)) == rows


@pytest.mark.parametrize("name", ["data", "rows", "examples", "instances", "records", "items"])
def test_an_object_that_holds_the_list_of_rows_is_that_list(tmp_path, name):
    text = json.dumps({"version": "1", name: [{"a": 1}, {"a": 2}]}, indent=1)
    assert read(tmp_path, "json", text) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "text",
    ['{"messages": [{"a": 1}]}', '\n {"messages":\n [{"a": 1}]} \n', '[{"messages":[{"a":1}]}]'],
)
def test_any_other_object_is_a_row(tmp_path, text):
    assert read(tmp_path, "json", text) == [{"messages": [{"a": 1}]}]


def test_objects_that_follow_each_other_are_rows_however_they_are_broken(tmp_path):
    assert read(tmp_path, "json", '{\n"a":\n1}{"a": 2\n}\n\n{"a":3}') == [
        {"a": 1},
        {"a": 2},
        {"a": 3},
    ]


@pytest.mark.parametrize(
    ("ending", "data", "message"),
    [
        ("jsonl", '{"a": 1}\n{"a": 1\n', r"rows\.jsonl, line 2: Expecting"),
        ("jsonl", '[{"a": 1},\n{"a" 1}]', r"rows\.jsonl, line 2: Expecting"),
        ("jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"line 2, byte 8 .*0xff is not UTF-8"),
        ("jsonl", '{"a": 1}\n\n7\n', r"rows\.jsonl, row 3: 7 is not an object"),
        ("jsonl", '[{"a": 1}, "x"]', r"rows\.jsonl, row 2: 'x' is not an object"),
        ("jsonl", '{"a": 1} {"a": 2}\n', "line 1: more follows the first value"),
        ("jsonl", "[" * 100_000, "line 1: .*nested too deeply"),
        ("jsonl", '{"a": 1}\n{"a": ' + "[" * 20_000 + "]" * 20_000 + "}", "line 2: .*nested too"),
        ("json", '[{"a": 1},\n{"a": ' + "[" * 20_000 + "]" * 20_000 + "}]", "line 2: .*nested"),
        ("jsonl", '\n{"a": ' + "9" * 5000 + "}", "line 2: a number has 5000 digits"),
        ("jsonl", '{"a": NaN}', "line 1: NaN is not JSON; write null"),
        ("json", '[{"a": 1},\n{"a": -Infinity}]', "line 2: -Infinity is not JSON; write null"),
        ("jsonl", '{"a": 1e999}', "line 1: 1e999 is too large"),
        ("jsonl", '{"a": {"b": 1, "c": 2, "b": 3}}', "line 1: an object has the key 'b' twice"),
        ("jsonl", b'{"a": "x\x00y"}', "line 1: Invalid control character"),
        ("jsonl", b"\x00\x00\x00\x00", "line 1: Expecting value"),
        ("json", '[{"a": 1},\n{"a": 2}', "line 2: Expecting ','"),
        ("json", '[{"a": 1},\n', "line 2: the list does not end"),
        ("json", '[{"a": 1}]\n[{"a": 2}]', "line 1: something follows the list"),
        ("json", '"text"', "row 1: 'text' is not an object"),
        ("json", "", "line 1: Expecting value"),
        ("jsonl", "\n \n", "holds no rows"),
        ("jsonl", "[]", "holds no rows"),
        ("json", '{"data": []}', "holds no rows"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, ending, data, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, ending, data)


def test_half_a_surrogate_pair_is_left_to_the_task(tmp_path):
    assert read(tmp_path, "jsonl", r'{"a": "x\ud83d"}') == [{"a": "x\ud83d"}]
    assert read(tmp_path, "jsonl", r'{"a": "x\ud83d\ude00"}') == [{"a": "x😀"}]
