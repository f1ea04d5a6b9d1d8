"""Files and adapter directories: checked before they are read, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from peftkit.errors import AdapterFileError, NonFiniteError, PeftkitError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_JSON_LIMIT_BYTES = 16 * 2**20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def cache_directory() -> Path:
    """Return where peftkit keeps what it has made: ``$PEFTKIT_CACHE``, or ``~/.cache/peftkit``."""
    return Path(os.environ.get("PEFTKIT_CACHE", "~/.cache/peftkit")).expanduser()


def write_file(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, or its pieces one after the other, to `path`, whole or not at all.

    A reader, or a crash, sees the old file or the new one, and nothing in between.
    """
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _temporary_name(path: Path) -> Path:
    """Return a hidden name beside `path` that nothing has.

    `tempfile` would make files that only their owner may read. To give them the usual permissions,
    the umask would have to be known, which cannot be asked for without setting it.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_file(path, f"{text}\n".encode())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSONL, whole or not at all.

    Dates, and whatever else JSON does not know, become strings.
    """
    write_file(path, map(_to_line, rows))


def _to_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as JSON in UTF-8, which has no half of a surrogate pair: it is escaped."""
    try:
        return f"{json.dumps(row, ensure_ascii=False, default=str)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(row, default=str)}\n".encode()


def read_json(path: Path, error: type[PeftkitError] = AdapterFileError) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        AdapterFileError: (or `error`) the file is missing, too large or cut, or has a key twice.
    """
    try:
        if path.stat().st_size > _JSON_LIMIT_BYTES:
            raise ValueError(f"it is larger than {_JSON_LIMIT_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_repeated_keys)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"cannot read {path}: {problem}") from problem
    return value


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the key {key!r} twice")
        found[key] = value
    return found


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `path` when the block ends without an error.

    Files that are in `path` already, and that the block does not write, are carried over. A crash
    leaves the old directory or the new one. Between the two renames of a replacement, there is
    neither, and `recover` puts the old one back.

    Raises:
        PeftkitError: `path` is the current directory, or holds it.
    """
    path = path.resolve()
    if Path.cwd().is_relative_to(path):
        raise PeftkitError(
            f"{path} holds the current directory and cannot be replaced; name a directory inside it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    stage = _temporary_name(path)
    stage.mkdir()
    try:
        yield stage
        _share_permissions(stage)
        if path.exists():
            _carry_over(path, stage)
        sync_directory(stage)
        if path.exists():
            path.rename(_aside(path))
        stage.rename(path)
        shutil.rmtree(_aside(path), ignore_errors=True)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _share_permissions(directory: Path) -> None:
    """Give all that is in a new directory the permissions that its creation gave the directory."""
    mode = directory.stat().st_mode & 0o777
    for file in directory.rglob("*"):
        file.chmod(mode if file.is_dir() else mode & 0o666)


def _carry_over(old: Path, new: Path) -> None:
    """Copy what is in one directory and not in another to that one."""
    for entry in old.iterdir():
        if (new / entry.name).exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name)
        else:
            shutil.copy2(entry, new / entry.name)


def recover(path: Path) -> None:
    """Put back a directory that a crash left set aside in the middle of a replacement."""
    if _aside(path).exists():
        if path.exists():
            shutil.rmtree(_aside(path))
        else:
            _aside(path).rename(path)


def _aside(path: Path) -> Path:
    """Return where a directory is while another takes its place."""
    path = path.resolve()
    return path.with_name(f".{path.name}.replaced")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, dtypes, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with a digest of its contents in the header.

    Raises:
        NonFiniteError: a tensor holds a NaN or an infinity. Nothing is written.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} holds values that are not finite; {path} is not written")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", "sha256": digest(plain), **(metadata or {})}
    write_file(path, serialize(plain, header))


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return the metadata and the shapes in a safetensors file, without reading a weight.

    Raises:
        AdapterFileError: the file is missing, cut or not safetensors, or a tensor is not a float.
    """
    if not path.is_file():
        raise AdapterFileError(
            f"{path} is missing; an adapter directory holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    dtypes: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118  (not a dict)
                tensor = file.get_slice(name)
                dtypes[name] = tensor.get_dtype()
                shapes[name] = tuple(tensor.get_shape())
    except (SafetensorError, OSError) as problem:
        raise AdapterFileError(f"{path} is damaged: {problem}") from problem
    for name, dtype in dtypes.items():
        if dtype not in ("F32", "BF16", "F16") and not name.endswith("num_batches_tracked"):
            raise AdapterFileError(
                f"{path}: {name} is stored as {dtype}; adapter weights are F32, BF16 or F16"
            )
    return metadata, shapes


def read_tensors(path: Path, error: type[PeftkitError] = AdapterFileError) -> dict[str, Tensor]:
    """Read a safetensors file and check it against the digest in its header, if it has one.

    Raises:
        AdapterFileError: (or `error`) the file is damaged.
        NonFiniteError: a tensor holds a NaN or an infinity.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} is damaged: {problem}") from problem
    if expected is not None and digest(tensors) != expected:
        raise error(f"{path} is damaged: its contents do not have the digest that its header names")
    for name, tensor in tensors.items():
        if tensor.dtype in _FLOATS and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{path}: {name} holds values that are not finite")
    return tensors


def check_shapes(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Compare the names and shapes in an adapter's file with what its config and backbone ask for.

    Raises:
        AdapterFileError: they differ.
    """
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    for name in sorted(found.keys() - expected.keys()):
        problems.append(f"{name} is not part of this adapter")
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            problems.append(
                f"{name} has shape {found[name]}, "
                f"the config and the backbone ask for {expected[name]}"
            )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise AdapterFileError(
            f"{path / WEIGHTS_NAME} does not fit: {'; '.join(problems[:3])}{more}"
        )
