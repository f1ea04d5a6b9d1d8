"""Cells of CSV and TSV are texts as written; Parquet and Arrow keep their types."""

import csv
import datetime
import json

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from peftkit.data.row_files import read_rows
from peftkit.errors import DataError
from peftkit.files import write_rows


def read(tmp_path, ending, text):
    (tmp_path / f"rows.{ending}").write_bytes(text.encode())
    return list(read_rows(tmp_path / f"rows.{ending}"))


@pytest.mark.parametrize("cell", ["None", "NA", "null", "nan", "N/A", "#N/A", "007", "1.0", "true"])
def test_a_cell_is_a_text_as_it_is_written(tmp_path, cell):
    assert read(tmp_path, "csv", f"text,label\nx,{cell}\n") == [{"text": "x", "label": cell}]
    assert read(tmp_path, "tsv", f"text\tlabel\nx\t{cell}\n") == [{"text": "x", "label": cell}]


def test_an_empty_cell_is_missing_and_an_empty_row_is_none(tmp_path):
    text = 'text,label\r\nx,\r\n\r\n,""\r\n,y\r\n'
    assert read(tmp_path, "csv", text) == [
        {"text": "x", "label": None},
        {"text": None, "label": "y"},
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path, end):
    text = f'a,b{end}1,"x{end}y, ""z"""{end}2,\x85\u2028{end}'
    assert read(tmp_path, "csv", text) == [
        {"a": "1", "b": f'x{end}y, "z"'},
        {"a": "2", "b": "\x85\u2028"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_separates_the_cells_of_a_csv_file_is_found(tmp_path, delimiter):
    path = tmp_path / "rows.csv"
    rows = [["text", "score"], ["a; b, c\td | e\nf", "3,5"], ["", "1"]] * 20
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["text", "score"], *rows])
    found = read_rows(path)
    assert found.columns == ("text", "score")
    assert found[1] == {"text": "a; b, c\td | e\nf", "score": "3,5"}
    assert len(found) == 60


def test_a_file_with_one_column_is_read(tmp_path):
    assert read(tmp_path, "csv", "text\nHello; you\nhi\n") == [
        {"text": "Hello; you"},
        {"text": "hi"},
    ]


def test_a_long_cell_is_read_and_the_limit_of_the_process_stays(tmp_path):
    limit = csv.field_size_limit()
    assert read(tmp_path, "csv", f"a,b\n1,{'x' * 300_000}\n")[0]["b"] == "x" * 300_000
    assert csv.field_size_limit() == limit


def test_names_of_columns_are_stripped(tmp_path):
    assert read(tmp_path, "csv", "\ufeff text ,\tlabel\u00a0\nx,y\n") == [
        {"text": "x", "label": "y"}
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n\n3\n", "line 4: .* 1 cells and not 2"),
        ("a,b\n1,2,3\n", "line 2: .* 3 cells and not 2"),
        ('a,b\n"1,2\n3,4\n', "line 3: unexpected end of data; a cell in quotation marks"),
        ('a,b\n"1"x,2\n', "line 2: ',' expected after '\"'"),
        (",text\n0,x\n", r"column 1 has no name; .*index=False"),
        ("text, text\n0,x\n", "two columns are called 'text'"),
        ("a,b\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"rows\.csv.*{message}"):
        read(tmp_path, "csv", text)


FEATURES = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=["bad", "good"]),
        "tags": List(ClassLabel(names=["O", "B-PER"])),
        "score": Value("float64"),
        "messages": [{"role": Value("string"), "name": Value("string")}],
        "day": Value("timestamp[s]"),
    }
)
TYPED = {
    "text": ["a", None],
    "label": [1, -1],
    "tags": [[0, 1], []],
    "score": [0.5, float("nan")],
    "messages": [[{"role": "user", "name": None}], None],
    "day": [datetime.datetime(2024, 5, 1), None],
}
EXPECTED = [
    {
        "text": "a",
        "label": "good",
        "tags": ["O", "B-PER"],
        "score": 0.5,
        "messages": [{"role": "user"}],
        "day": datetime.datetime(2024, 5, 1),
    },
    {"text": None, "label": None, "tags": [], "score": None, "messages": None, "day": None},
]


def test_typed_tables_keep_types_and_name_classes(tmp_path):
    data = Dataset.from_dict(TYPED, features=FEATURES)
    data.to_parquet(tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == EXPECTED
    table = data.data.table
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read_rows(tmp_path / "stream.arrow") == EXPECTED
    assert read_rows(tmp_path / "file.arrow") == EXPECTED


def test_dates_of_a_table_can_be_written(tmp_path):
    Dataset.from_dict(TYPED, features=FEATURES).to_parquet(tmp_path / "rows.parquet")
    write_rows(tmp_path / "rows.jsonl", read_rows(tmp_path / "rows.parquet"))
    assert read_rows(tmp_path / "rows.jsonl")[0] == EXPECTED[0] | {"day": "2024-05-01 00:00:00"}


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("part", [0, 4, 0.5, 0.99])
def test_a_damaged_table_is_named(tmp_path, ending, part):
    data = Dataset.from_dict({"text": ["some text"] * 5000})
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        data.to_parquet(path)
    else:
        with pa.ipc.new_stream(str(path), data.data.schema) as writer:
            writer.write_table(data.data.table)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part if part >= 1 else part * len(whole))])
    with pytest.raises(DataError, match=rf"cannot read .*rows\.{ending}: "):
        read_rows(path)


ODD = [
    "\u2028", "\u2029", "\x85", "a\x0bb\x0cc", "\x1c\x1d\x1e", "\ufeffx", "e\u0301 é", "\u202eabc",
    "\U0001f469\u200d\U0001f467", "\x00", "\x7f", '"quoted", and; more|\t', "\n\r\n\r", "  x  ",
    "\U0010ffff", "None", "NaN", "-1", "\\ud83d", "'", "\\", "\u00a0", "\ufdfa",
]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
def test_odd_texts_are_read_back_equal(tmp_path, ending):
    rows = [{"number": str(number), "text": text} for number, text in enumerate(ODD)]
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        write_rows(path, rows)
    elif ending == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8", newline="")
    elif ending in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "," if ending == "csv" else "\t"
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    assert read_rows(path) == rows
    write_rows(tmp_path / "again.jsonl", read_rows(path))
    assert read_rows(tmp_path / "again.jsonl") == rows


def test_rows_that_were_written_are_read_back_equal(tmp_path):
    rows = [
        {"text": text, "nested": [{text: [text, None, 1.5, True]}]} for text in [*ODD, "x\ud83d"]
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
