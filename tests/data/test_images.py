"""Images come from data files and folders, upright, and what is not an image is named."""

import pytest
from PIL import Image

from peftkit.backbones.processors import load_image_processor
from peftkit.data.images import read_image_rows, read_pixels
from peftkit.errors import BackboneError, DataError
from tests.recipes.jobs import MODELS, image_row, write_jsonl


def test_images_come_from_files_and_folders(tmp_path):
    rows = [image_row(tmp_path, 0, "red"), image_row(tmp_path, 1, "blue")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    kinds = {"image": (str,), "label": (str, int)}
    found = read_image_rows(path, kinds, {})
    assert all(row["image"].startswith(str(tmp_path)) for row in found)
    processor = load_image_processor(MODELS / "vit-digits" / "config.json")
    assert read_pixels(processor, found)["pixel_values"].shape == (2, 3, 16, 16)
    with pytest.raises(DataError, match="lies beside the folders of the classes"):
        read_image_rows(str(tmp_path), kinds, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_image_rows(str(tmp_path / "empty"), kinds, {})
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_pixels(processor, [{"image": path}])
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"image": "x.png", "label": "a"}])
    with pytest.raises(DataError, match="row 1: there is no file"):
        list(read_image_rows(bad, kinds, {}))
    with pytest.raises(BackboneError, match="cannot load an image processor"):
        load_image_processor(MODELS / "char-bert-zh")


def test_images_of_a_folder_without_labels_stand_upright(tmp_path):
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned to the right by a quarter
    image.save(tmp_path / "a.png", exif=turned)
    rows = read_image_rows(str(tmp_path), {"image": (str,)}, {})
    assert rows == [{"image": str(tmp_path / "a.png")}]
    seen = []
    read_pixels(lambda images, return_tensors: seen.extend(images) or {"pixel_values": None}, rows)
    assert seen[0].size == (4, 8)
    assert seen[0].getpixel((3, 0)) == (255, 0, 0)
