"""Images by their paths: rows of a data file, or the files of a folder with a sub-folder for each
class.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit.data.row_files import Row
from peftkit.data.table_rows import ColumnTypes, read_table_rows, resolve_files
from peftkit.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image_rows(path: str, columns: ColumnTypes, renamed: Mapping[str, str]) -> list[Row]:
    """Return rows with ``image``, an absolute path, and ``label``: of a data file, or of a folder
    by its sub-folders' names.

    Rows of a folder have no ``label`` where `columns` has none.

    Raises:
        DataError: there is no image, or a row names one that does not exist.
    """
    folder = Path(path)
    if not folder.is_dir():
        return resolve_files(read_table_rows(path, columns, renamed), "image", path)
    files = sorted(file.resolve() for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"the folder {path} holds no images ({', '.join(_SUFFIXES)})")
    if "label" not in columns:
        return [{"image": str(file)} for file in files]
    stray = next((file for file in files if file.parent == folder.resolve()), None)
    if stray is not None:
        raise DataError(
            f"{stray} lies beside the folders of the classes; put each image into the folder of its class"
        )
    return [
        {"image": str(file), "label": file.relative_to(folder.resolve()).parts[0]} for file in files
    ]


def read_pixels(processor: Any, images: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return ``pixel_values`` (images, channels, height, width) of the rows' ``image`` files,
    turned as EXIF says.

    Raises:
        DataError: a file is no image.
    """
    return {
        "pixel_values": processor([_rgb(image["image"]) for image in images], return_tensors="pt")[
            "pixel_values"
        ]
    }


def _rgb(path: str) -> Any:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as problem:
        raise DataError(f"{path} cannot be read as an image: {problem}") from problem
