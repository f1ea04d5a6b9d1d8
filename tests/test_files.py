import json
import os

import pytest
import torch

from peftkit.errors import AdapterFileError, NonFiniteError, PeftkitError
from peftkit.files import (
    read_json,
    read_tensors,
    staged_directory,
    write_file,
    write_json,
    write_tensors,
)


class _BrokenError(Exception):
    pass


def listing(path):
    return sorted(entry.name for entry in path.iterdir())


def test_a_file_is_written_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert listing(tmp_path) == ["file"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file"]


def write_half(path):
    with staged_directory(path) as stage:
        (stage / "a").write_text("half")
        raise _BrokenError


def test_a_staged_directory_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(_BrokenError):
        write_half(path)
    assert listing(tmp_path) == []
    for text in ("first", "second"):
        with staged_directory(path) as stage:
            (stage / "a").write_text(text)
        (path / "theirs").write_text("kept")
    assert ((path / "a").read_text(), (path / "theirs").read_text()) == ("second", "kept")
    with pytest.raises(_BrokenError):
        write_half(path)
    assert (path / "a").read_text() == "second"
    assert listing(tmp_path) == ["out"]


def test_the_current_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path.parent):
        with (
            pytest.raises(PeftkitError, match="name a directory inside it"),
            staged_directory(path),
        ):
            pass


def test_json_with_repeated_keys_nan_or_no_object_is_refused(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": [2]})
    assert read_json(path) == {"a": [2], "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    for text in ("", "{", "[]", '{"a": 1, "a": 2}'):
        path.write_text(text)
        with pytest.raises(AdapterFileError, match=r"x\.json"):
            read_json(path)


def test_a_damaged_or_non_finite_tensor_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2).bfloat16()}
    write_tensors(path, tensors)
    found = read_tensors(path)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AdapterFileError, match="digest"):
        read_tensors(path)
    with pytest.raises(NonFiniteError, match="a holds values"):
        write_tensors(path, {"a": torch.tensor([float("inf")])})


def test_written_json_has_sorted_keys(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": 2})
    assert (tmp_path / "x.json").read_text() == json.dumps({"a": 2, "b": 1}, indent=2) + "\n"
