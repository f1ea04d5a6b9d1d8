"""Image rows, of a data file or of a folder with a sub-folder per class, and their pixels."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit.data.rows import Rows
from peftkit.data.table_rows import Columns, read_file_rows
from peftkit.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image_rows(path: str, columns: Columns, renamed: Mapping[str, str]) -> Rows:
    """Return rows with ``image``, an absolute path, and ``label``, if `columns` has one.

    Args:
        path: A data file, or a folder. In a folder, an image's label is its sub-folder's name.
        columns: The columns that every row must have, and what reads their values.
        renamed: The data file's name for each column that it calls otherwise.

    Raises:
        DataError: there is no image, or an image of a folder has no class. Reading a row raises it
            too, where the row names a file that does not exist.
    """
    if Path(path).is_dir():
        return _read_folder(Path(path).resolve(), labelled="label" in columns)
    return read_file_rows(path, columns, renamed, file_column="image")


def _read_folder(folder: Path, *, labelled: bool) -> Rows:
    rows = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in _SUFFIXES:
            continue
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
