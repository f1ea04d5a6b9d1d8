"""Image rows, of a data file or of a folder with a sub-folder per class, and their pixels."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit.data.row_files import RowSource, is_directory_of_rows
from peftkit.data.rows import Rows
from peftkit.data.table_rows import Columns, read_file_rows
from peftkit.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image_rows(
    source: RowSource, columns: Columns, renamed: Mapping[str, str], encoding: str | None = None
) -> Rows:
    """Return rows with ``image``, an absolute path, and ``label``, if `columns` has one.

    Args:
        source: A folder of images, in which an image's label is its sub-folder's name; or where
            rows are, as `peftkit.data.row_files.read_rows` takes it.
        columns: The columns that every row must have, and what reads their values.
        renamed: The source's name for each column that it calls otherwise.
        encoding: The encoding of text files, as `read_rows` takes it.

    Raises:
        DataError: there is no image, or an image of a folder has no class. Reading a row raises it
            too, where the row names a file that does not exist.
    """
    if isinstance(source, str | Path) and _is_folder(Path(source).expanduser()):
        folder = Path(source).expanduser().resolve()
        return _read_folder(folder, labelled="label" in columns)
    return read_file_rows(source, columns, renamed, encoding, file_column="image")


def _is_folder(path: Path) -> bool:
    """Return whether a path is a directory of images, or of nothing that rows could be in."""
    return path.is_dir() and (bool(_list_images(path)) or not is_directory_of_rows(path))


def _list_images(folder: Path) -> list[Path]:
    files = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _SUFFIXES:
            files.append(file)
    return files


def _read_folder(folder: Path, *, labelled: bool) -> Rows:
    rows = []
    for file in _list_images(folder):
        row = {"image": str(file)}
        if labelled:
            if file.parent == folder:
                raise DataError(
                    f"{file} lies beside the folders of the classes; put each image into the "
                    "folder of its class"
                )
            row["label"] = file.relative_to(folder).parts[0]
        rows.append(row)
    if not rows:
        raise DataError(f"the folder {folder} holds no images ({', '.join(_SUFFIXES)})")
    return Rows.of(rows, str(folder))


def read_pixels(processor: Any, images: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the pixels of the rows' ``image`` files, as the backbone's image processor makes them.

    Returns:
        ``pixel_values``: (images, channels, height, width).

    Raises:
        DataError: a file is not an image.
    """
    pictures = [_read_picture(image["image"]) for image in images]
    batch = processor(pictures, return_tensors="pt")
    return {"pixel_values": batch["pixel_values"]}


def _read_picture(path: str) -> Any:
    """Return an upright RGB picture: EXIF may say that a file is to be turned."""
    from PIL import Image, ImageOps

    broken = (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    )
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except broken as problem:
        raise DataError(f"{path} cannot be read as an image: {problem}") from problem
