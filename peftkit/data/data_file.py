"""One data file: whether it can be read, its digest, its bytes unpacked, and its text decoded."""

import bz2
import codecs
import contextlib
import gzip
import hashlib
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from peftkit.errors import DataError

PACKED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
"""How files are opened whose last ending says that they are compressed."""

_SMALL_BYTES = 4 * 2**20  # a file of this size is kept in memory
_PACKED_SMALL_BYTES = _SMALL_BYTES // 8  # for text becomes about eight times larger
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = ("utf-16", "utf-32")  # a line feed is not one byte in them
_UNPACKING = (EOFError, zlib.error, lzma.LZMAError)
_SEEN_BYTES = 2**16  # from which the encoding is guessed


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Attributes:
        path: Where it is.
        kind: Its ending, such as ".csv", without that of a compression.
        packing: The ending of its compression, such as ".gz", or an empty text.
        encoding: The encoding of its text, where no mark at its beginning says another.
        part: The part of it to read, such as a sheet; None for the only one.
        data: Its content, if it is small.
    """

    path: Path
    kind: str
    packing: str
    encoding: str | None
    part: str | None
    data: bytes | None

    @classmethod
    def at(
        cls,
        path: Path,
        kind: str,
        packing: str,
        encoding: str | None,
        part: str | None,
        among: int = 1,
    ) -> "DataFile":
        """Return the file at a path. A small one is read here, once and for all.

        Args:
            path: Where it is.
            kind: Its ending.
            packing: The ending of its compression.
            encoding: The encoding of its text.
            part: The part of it to read.
            among: How many files are read together: the more, the smaller a small one is.

        Raises:
            DataError: it cannot be read, or is not a file.
        """
        is_packed = bool(packing) or kind in (".parquet", ".xlsx")
        limit = _PACKED_SMALL_BYTES if is_packed else _SMALL_BYTES
        data = None
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"cannot read {path}: it is not a file")
            if status.st_size <= limit // among:
                data = path.read_bytes()
        except OSError as problem:
            raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem
        return cls(path, kind, packing, encoding, part, data)

    @cached_property
    def digest(self) -> str:
        """A digest of the content, or of what it was when this was first asked for."""
        if self.data is None:
            return _digest(self.path)
        return hashlib.sha256(self.data).hexdigest()

    @property
    def is_small(self) -> bool:
        """Whether its rows are kept in memory."""
        return self.data is not None

    def check_unchanged(self) -> None:
        """Check that the file is still the one that the digest is of.

        Raises:
            DataError: it was written to, or is gone.
        """
        if self.data is None and _digest(self.path) != self.digest:
            raise DataError(f"{self.path} was changed while it was read; start again")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what goes wrong with reading, but for the encoding, into a `DataError`."""
        try:
            yield
        except UnicodeDecodeError as problem:
            raise DataError(self._explain_encoding(problem)) from problem
        except _UNPACKING as problem:
            raise DataError(
                f"cannot unpack {self.path}: {problem}; it is cut off or damaged"
            ) from problem
        except OSError as problem:
            raise DataError(f"cannot read {self.path}: {problem.strerror or problem}") from problem

    def open(self) -> IO[bytes]:
        """Return the bytes as they are in the file."""
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[Any]:
        """Yield the bytes, unpacked if the file is compressed."""
        with self.open() as raw:
            if not self.packing:
                yield raw
                return
            with PACKED[self.packing](raw) as unpacked:
                yield unpacked

    @contextlib.contextmanager
    def text(self, newline: str = "\n") -> Iterator[io.TextIOWrapper]:
        """Yield the text, without a byte order mark.

        Args:
            newline: What ends a line, as `io.TextIOWrapper` takes it. It is the line feed alone: a
                text in JSON may contain all others, such as U+2028.
        """
        with self.unpacked() as unpacked:
            yield io.TextIOWrapper(unpacked, encoding=self._text_encoding, newline=newline)

    @cached_property
    def _text_encoding(self) -> str:
        with self.unpacked() as unpacked:
            beginning = unpacked.read(4)
        for mark, encoding in _MARKS.items():
            if beginning.startswith(mark):
                return encoding
        return self.encoding or "utf-8"

    def _explain_encoding(self, problem: UnicodeDecodeError) -> str:
        """Return the message about a byte that is not of the encoding, with its line."""
        name = self._text_encoding.removesuffix("-sig")
        seen = problem.object[max(0, problem.start - _SEEN_BYTES) :][: 2 * _SEEN_BYTES]
        wrong = f"byte 0x{problem.object[problem.start]:02x}"
        if name.startswith(_WIDE):
            return (
                f"cannot read {self.path}: {wrong} is not {name.upper()}; it is cut off or damaged"
            )
        remedy = "set data.encoding to the encoding that the file was written in"
        if self.encoding is None:
            likely = likely_encoding(seen)
            remedy = f"it is perhaps {likely}: set data.encoding: {likely}"
        place = self._find_undecodable(name)
        return f"cannot read {self.path}{place}: {wrong} is not {name.upper()}; {remedy}"

    def _find_undecodable(self, encoding: str) -> str:
        with self.unpacked() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode(encoding)
                except UnicodeDecodeError as problem:
                    return f", line {number}, byte {problem.start + 1} of the line"
        return ""


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def likely_encoding(data: bytes) -> str:
    """Return the encoding that bytes that are not UTF-8 probably have.

    Where most letters are ASCII, it is the one of Windows in western Europe: no statistics can tell
    it from its neighbours by a few accents.
    """
    nulls = data[:1000].count(0)
    if nulls > len(data[:1000]) // 4:
        return "utf-16-le" if data[1:1000:2].count(0) > nulls // 2 else "utf-16-be"
    letters = [byte for byte in data if byte > 0x7F or chr(byte).isalpha()]
    foreign = sum(byte > 0x7F for byte in letters)
    if foreign <= len(letters) // 3:
        return "cp1252"
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:
        return "cp1252"
    found = from_bytes(data).best()
    return "cp1252" if found is None else str(found.encoding)
