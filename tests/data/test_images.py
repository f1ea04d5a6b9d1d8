"""Images come from data files and folders, upright, and what is not an image is named."""

import pytest
from PIL import Image

from peftkit.backbones.processors import load_image_processor
from peftkit.data.images import read_image_rows, read_pixels
from peftkit.data.table_values import read_label, read_path
from peftkit.errors import BackboneError, DataError
from tests.recipes.jobs import MODELS, image_row, write_jsonl

COLUMNS = {"image": read_path, "label": read_label}


def test_images_come_from_files_and_folders(tmp_path):
    rows = [image_row(tmp_path, 0, "red"), image_row(tmp_path, 1, "blue")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = read_image_rows(path, COLUMNS, {})
    assert all(row["image"].startswith(str(tmp_path)) for row in found)
    processor = load_image_processor(MODELS / "vit-digits" / "config.json")
    assert read_pixels(processor, found)["pixel_values"].shape == (2, 3, 16, 16)
    with pytest.raises(DataError, match="lies beside the folders of the classes"):
        read_image_rows(str(tmp_path), COLUMNS, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_image_rows(str(tmp_path / "empty"), COLUMNS, {})
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_pixels(processor, [{"image": path}])
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"image": "x.png", "label": "a"}])
    with pytest.raises(DataError, match="row 1: there is no file"):
        list(read_image_rows(bad, COLUMNS, {}))
    with pytest.raises(BackboneError, match="cannot load an image processor"):
        load_image_processor(MODELS / "char-bert-zh")


def test_images_of_a_folder_without_labels_stand_upright(tmp_path):
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned to the right by a quarter
    image.save(tmp_path / "a.png", exif=turned)
    rows = read_image_rows(str(tmp_path), {"image": read_path}, {})
    assert rows == [{"image": str(tmp_path / "a.png")}]
    seen = []
    read_pixels(lambda images, return_tensors: seen.extend(images) or {"pixel_values": None}, rows)
    assert seen[0].size == (4, 8)
    assert seen[0].getpixel((3, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("folder", "folder is a directory; 'image' must name a file"),
        ("https://example.org/a.png", "is the address .*: download the file"),
        ("file:///tmp/a.png", "is the address"),
        ("~nobody-of-this-name/a.png", "'image' names no file"),
        ("a" * 5000, "'image' names no file"),
        ({"bytes": "..."}, "it must be the path of a file"),
        ("", "'image' is blank: leave the row out"),
        (None, "'image' is missing: leave the row out"),
    ],
)
def test_what_is_no_local_file_is_named_with_its_row(tmp_path, image, message):
    (tmp_path / "folder").mkdir()
    path = write_jsonl(tmp_path / "rows.jsonl", [{"image": image, "label": "a"}])
    with pytest.raises(DataError, match=f"rows.jsonl, row 1: .*{message}"):
        list(read_image_rows(path, COLUMNS, {}))


def test_a_path_may_be_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    row = image_row(tmp_path, 0, "red")
    (tmp_path / "data").mkdir()
    path = write_jsonl(tmp_path / "data" / "rows.jsonl", [row | {"image": f"~/{row['image']}"}])
    assert read_image_rows(path, COLUMNS, {})[0]["image"] == str(tmp_path / row["image"])


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.jpg", "a.tiff"])
def test_a_file_that_breaks_off_is_named(tmp_path, name):
    whole = tmp_path / name
    Image.effect_noise((64, 64), 90).save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{name} cannot be read as an image"):
        read_pixels(None, [{"image": str(whole)}])
