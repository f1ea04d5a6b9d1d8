"""Sounds are brought to the model's rate, and what is not a sound is named."""

import numpy as np
import pytest
import soundfile

from peftkit.backbones.loading import load_tokenizer
from peftkit.backbones.processors import SpeechProcessor
from peftkit.data.audio import read_audio_rows, read_spectrograms, read_waveform
from peftkit.data.table_values import read_path, read_text
from peftkit.errors import BackboneError, DataError
from tests.recipes.jobs import MODELS, write_jsonl


@pytest.mark.parametrize("rate", [8000, 44100])
def test_sound_is_brought_to_one_channel_and_the_models_rate(tmp_path, rate):
    wave = np.sin(np.arange(rate) / rate * 440 * 2 * np.pi) * 0.5
    soundfile.write(tmp_path / "a.flac", np.stack([wave, wave], 1), rate)
    found = read_waveform(str(tmp_path / "a.flac"), 16000)
    assert found.dtype == np.float32
    assert len(found) == 16000
    assert np.argmax(np.abs(np.fft.rfft(found))) == 440
    assert np.abs(found[2000:-2000]).max() == pytest.approx(0.5, abs=0.02)


def test_a_file_that_is_not_sound_is_named(tmp_path):
    (tmp_path / "a.wav").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read as sound"):
        read_waveform(str(tmp_path / "a.wav"), 16000)
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 8000)
    with pytest.raises(DataError, match="holds no sound"):
        read_waveform(str(tmp_path / "b.wav"), 16000)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"audio": "c.wav", "text": "x"}])
    with pytest.raises(DataError, match="row 1: there is no file"):
        list(read_audio_rows(rows, {"audio": read_path, "text": read_text}, {}))


def test_speech_labels_have_an_end_token_and_no_start_token(tmp_path):
    processor = SpeechProcessor(MODELS / "whisper-tones" / "config.json")
    [ids, other] = processor.label(["low high", "low"])
    assert [other] == processor.label(["low"])
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


def test_a_tokenizer_without_an_end_token_is_refused(monkeypatch):
    tokenizer = load_tokenizer(MODELS / "whisper-tones" / "config.json")
    tokenizer.eos_token = None
    monkeypatch.setattr("peftkit.backbones.processors.load_tokenizer", lambda source: tokenizer)
    with pytest.raises(BackboneError, match="has no end-of-sequence token, which ends a transcr"):
        SpeechProcessor(MODELS / "whisper-tones" / "config.json")
