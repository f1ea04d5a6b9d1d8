"""What examples depend on beside their rows: the code, the libraries, the processor, the settings.

The cache names examples by it, so that a change of any of them makes new ones.
"""

import hashlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import peftkit

_LIBRARIES = ("jinja2", "pyarrow", "tokenizers", "transformers")


def encoding_digest(task: object, processor: Any, settings: object) -> str:
    """Return a digest of all that a task's examples depend on, beside the rows.

    Args:
        task: Its class, and the functions among its attributes, count with the files that they
            are written in; a file that such a file imports does not, but for peftkit's own.
        processor: A tokenizer or processor; its files count, as it saves them.
        settings: Anything whose ``repr`` tells it from others.
    """
    digest = hashlib.sha256(repr(settings).encode("utf-8", "surrogatepass"))
    for name in _LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    digest.update(_package_digest().encode())
    for file in _files_of(task):
        digest.update(file.read_bytes())
    with tempfile.TemporaryDirectory() as directory:
        processor.save_pretrained(directory)
        _add_files(digest, sorted(Path(directory).rglob("*")))
    return digest.hexdigest()


@cache
def _package_digest() -> str:
    """Return a digest of peftkit's own files that make examples."""
    package = Path(peftkit.__file__).parent
    digest = hashlib.sha256()
    for room in ("data", "tasks", "backbones"):
        _add_files(digest, sorted((package / room).rglob("*.py")))
    return digest.hexdigest()


def _add_files(digest: Any, files: Iterable[Path]) -> None:
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())


def _files_of(task: object) -> Iterator[Path]:
    """Yield the files, outside the package, that a task's class and functions are written in."""
    modules = [kind.__module__ for kind in type(task).__mro__]
    for value in vars(task).values():
        modules.append(getattr(value, "__module__", None) or "")
    for name in dict.fromkeys(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        is_ours = name.split(".")[0] in ("peftkit", "transformers", "builtins", "abc")
        if file and not is_ours and Path(file).is_file():
            yield Path(file)
