"""Encodings and compressions: what is read, and what is said of the rest."""

import bz2
import gzip
import json
import lzma
import os

import pytest

from peftkit.data.row_files import read_rows
from peftkit.errors import DataError

ROWS = [{"text": "Café für 5 €"}, {"text": "naïve\u2028schön"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "ndjson", "JSONL"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding, ending):
    (tmp_path / f"rows.{ending}").write_bytes(LINES.encode(encoding))
    assert read_rows(tmp_path / f"rows.{ending}") == ROWS
    assert read_rows(tmp_path / f"rows.{ending}", encoding="utf-8") == ROWS


@pytest.mark.parametrize(
    ("text", "encoding", "likely"),
    [
        ("Der Café hat für alle geöffnet", "cp1252", "cp1252"),
        ("Завтра будет хорошая погода", "cp1251", "cp1251"),
        ("这是一个测试文件。你好世界", "gb18030", "gb18030"),
        ("plain", "utf-16-be", None),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_another_encoding_is_named_with_the_key_that_reads_it(
    tmp_path, text, encoding, likely, ending
):
    path = tmp_path / f"rows.{ending}"
    is_table = ending in ("csv", "tsv")
    content = (
        f"text\nx\n{text}\n"
        if is_table
        else '{"text": "x"}\n' + json.dumps({"text": text}, ensure_ascii=False)
    )
    path.write_bytes(content.encode(encoding))
    if likely is not None:
        with pytest.raises(
            DataError, match=rf"rows\.{ending}, line [23], byte \d+ .*data\.encoding: {likely}$"
        ):
            read_rows(path)
    assert read_rows(path, encoding=encoding) == [{"text": "x"}, {"text": text}]


def test_a_byte_that_is_not_of_the_given_encoding_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\x81"}\n')
    with pytest.raises(DataError, match="line 1, byte 11 of the line: byte 0x81 is not CP1252"):
        read_rows(tmp_path / "rows.jsonl", encoding="cp1252")


def test_utf_16_that_is_cut_off_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINES.encode("utf-16")[:-1])
    with pytest.raises(DataError, match="is not UTF-16; it is cut off or damaged"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("packing", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_compressed_files_hold_the_same_rows(tmp_path, packing, pack):
    packed = pack(LINES.encode())
    (tmp_path / f"rows.jsonl.{packing}").write_bytes(packed)
    assert read_rows(tmp_path / f"rows.jsonl.{packing}") == ROWS
    (tmp_path / f"rows.csv.{packing}").write_bytes(pack(b"text,label\n1,2\n"))
    assert read_rows(tmp_path / f"rows.csv.{packing}") == [{"text": "1", "label": "2"}]
    (tmp_path / f"cut.jsonl.{packing}").write_bytes(packed[:-10])
    with pytest.raises(DataError, match=rf"cannot unpack .*cut\.jsonl\.{packing}"):
        read_rows(tmp_path / f"cut.jsonl.{packing}")
    (tmp_path / f"other.jsonl.{packing}").write_bytes(b"no such thing" * 9)
    with pytest.raises(DataError, match=rf"other\.jsonl\.{packing}"):
        read_rows(tmp_path / f"other.jsonl.{packing}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.jsonl.zst", "run zstd -d rows.jsonl.zst"),
        ("rows.zip", "run unzip rows.zip"),
        ("rows.xls", "save it as .xlsx or .csv"),
        ("rows.txt", r"ends in '\.txt'; data files end in \.jsonl"),
        ("rows.parquet.gz", r"ends in '\.gz'"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_what_is_not_a_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl: it is not a file"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / "rows.jsonl").chmod(0)
    with pytest.raises(DataError, match=r"rows\.jsonl: Permission denied"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def every_file_is_large(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("peftkit.data.data_file._SMALL_BYTES", 0)
    monkeypatch.setattr("peftkit.data.data_file._PACKED_SMALL_BYTES", 0)


def not_again(file, sink):
    raise AssertionError(f"{file} is copied again")


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_large_file_is_copied_once(tmp_path, ending, monkeypatch):
    path = tmp_path / f"rows.{ending}"
    data = gzip.compress(LINES.encode()) if ending.endswith("gz") else LINES.encode()
    path.write_bytes(data)
    rows = read_rows(path)
    monkeypatch.setattr("peftkit.data.row_files._copy", not_again)
    assert read_rows(path) == ROWS
    path.unlink()
    assert rows == ROWS


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize("change", ["written", "removed"])
def test_a_file_that_changes_while_it_is_copied_is_not_taken(tmp_path, monkeypatch, change):
    from peftkit.data import row_files

    path = tmp_path / "rows.jsonl"
    path.write_text(LINES)
    read = row_files.read_json_lines

    def read_and_change(file):
        yield from read(file)
        path.write_text("{}\n") if change == "written" else path.unlink()

    monkeypatch.setitem(row_files._READERS, ".jsonl", read_and_change)
    with pytest.raises(DataError, match=r"was changed while it was read|No such file"):
        read_rows(path)
    assert not list((tmp_path / "cache" / "data").glob("rows*[!k]"))  # but for the lock


@pytest.mark.usefixtures("every_file_is_large")
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cache, .*file/cache/data: .*PEFTKIT_CACHE"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.usefixtures("every_file_is_large")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def write(file, sink):
        raise OSError(28, "No space left on device")

    (tmp_path / "rows.jsonl").write_text(LINES)
    monkeypatch.setattr("peftkit.data.row_files._copy", write)
    with pytest.raises(DataError, match=r"No space left on device; set .*PEFTKIT_CACHE"):
        read_rows(tmp_path / "rows.jsonl")
