"""Rows of tasks with columns of their own, images and sounds."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from peftkit.backbones.processors import SpeechProcessor, load_image_processor
from peftkit.data.audio import read_audio_rows, read_spectrograms, read_waveform
from peftkit.data.held_out_split import split_held_out
from peftkit.data.images import read_image_rows, read_pixels
from peftkit.data.replay import add_replay
from peftkit.data.table_rows import list_labels, read_table_rows
from peftkit.errors import BackboneError, DataError
from tests.recipes.jobs import MODELS, image_row, write_jsonl

KINDS = {"text": (str,), "label": (str, int)}


def test_columns_are_renamed_and_checked(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"review": "a", "stars": 4}, {"review": "b", "stars": 5}]
    )
    rows = read_table_rows(path, KINDS, {"text": "review", "label": "stars"})
    assert rows == [{"text": "a", "label": 4}, {"text": "b", "label": 5}]
    with pytest.raises(
        DataError, match=r"has the columns 'review', 'stars' and no 'text'.*data\.columns"
    ):
        read_table_rows(path, KINDS, {})
    with pytest.raises(DataError, match=r"no column 'revew'.*did you mean 'review'"):
        read_table_rows(path, KINDS, {"text": "revew"})


@pytest.mark.parametrize(
    ("label", "what"), [(True, "True"), (1.5, "1.5"), (None, "None"), (["x"], r"\['x'\]")]
)
def test_a_label_of_another_type_is_named_with_its_row(tmp_path, label, what):
    rows = [{"text": "a", "label": label}, {"text": "b", "label": label}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        DataError, match=f"row 1: 'label' is {what}; it must be a text or a whole number"
    ):
        read_table_rows(path, KINDS, {})


def test_a_share_is_held_out_with_groups_kept_together():
    rows = [{"group": i // 3, "i": i} for i in range(30)]
    train, held_out = split_held_out(rows, 0.2, seed=1)
    assert len(held_out) == 6
    assert not {row["group"] for row in train} & {row["group"] for row in held_out}
    assert split_held_out(rows, 0.2, seed=1) == (train, held_out)
    assert split_held_out(rows, 0.2, seed=2)[1] != held_out


def test_replayed_rows_are_the_share_that_was_asked_for():
    mixed = add_replay(
        [{"new": i} for i in range(80)], [{"old": i} for i in range(50)], 0.2, seed=0
    )
    assert sum("old" in row for row in mixed) == 20
    assert sum("old" in row for row in add_replay([{}] * 80, [{"old": 1}] * 5, 0.5, seed=0)) == 5


def test_labels_are_in_order():
    assert list_labels([10, 9, 2]) == ["2", "9", "10"]
    assert list_labels(["b", "a", "b"]) == ["a", "b"]
    assert list_labels([1, "x"]) == ["1", "x"]


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
    with pytest.raises(DataError, match="row 1: there is no file"):
        read_image_rows(
            write_jsonl(tmp_path / "bad.jsonl", [{"image": "x.png", "label": "a"}]), kinds, {}
        )
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


@pytest.mark.parametrize("rate", [8000, 44100])
def test_sound_is_brought_to_one_channel_and_the_models_rate(tmp_path, rate):
    wave = np.sin(np.arange(rate) / rate * 440 * 2 * np.pi) * 0.5
    soundfile.write(tmp_path / "a.flac", np.stack([wave, wave], 1), rate)
    found = read_waveform(str(tmp_path / "a.flac"), 16000)
    assert found.dtype == np.float32
    assert len(found) == 16000
    assert np.argmax(np.abs(np.fft.rfft(found))) == 440
    assert np.abs(found[2000:-2000]).max() == pytest.approx(0.5, abs=0.02)


def test_what_is_no_sound_is_named(tmp_path):
    (tmp_path / "a.wav").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read as sound"):
        read_waveform(str(tmp_path / "a.wav"), 16000)
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 8000)
    with pytest.raises(DataError, match="holds no sound"):
        read_waveform(str(tmp_path / "b.wav"), 16000)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"audio": "c.wav", "text": "x"}])
    with pytest.raises(DataError, match="row 1: there is no file"):
        read_audio_rows(rows, {"audio": (str,), "text": (str,)}, {})


def test_speech_labels_end_and_do_not_start(tmp_path):
    processor = SpeechProcessor(MODELS / "whisper-tones" / "config.json")
    ids = processor.label("low high", 32)
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert processor._start not in ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == "low high"
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    features = read_spectrograms(processor.extractor, [{"audio": str(tmp_path / "a.wav")}])[
        "input_features"
    ]
    assert features.shape == (1, 40, 300)
    with pytest.raises(BackboneError, match="takes no language"):
        SpeechProcessor(MODELS / "whisper-tones" / "config.json", "german")
