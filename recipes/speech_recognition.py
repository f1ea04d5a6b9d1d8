"""Transcribe speech, with encoder-decoders such as Whisper.

    accelerate launch recipes/speech_recognition.py --config speech_recognition/quick

Rows are {"audio": PATH, "text": ...}. A relative path is relative to the directory of the data
file. Sounds are resampled to the model's rate, and cut at the end of its window (30 seconds for
Whisper). The report has word and character error rates.
"""

from dataclasses import field
from functools import partial
from typing import Annotated

from pydantic import Field

from peftkit.config.keys import section
from peftkit.config.sections import GenerationSettings, RowSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Data(RowSettings):
    """Which recordings to learn from."""

    max_length: Annotated[int, Field(ge=2)] = 448
    """Longest text in tokens. Longer texts are cut, and counted."""
    language: str | None = None
    """The spoken language, such as "german". Multilingual models need it; others take none."""


@section
class Config(RecipeSettings):
    """Transcribe speech."""

    data: Data
    generation: GenerationSettings = field(default_factory=GenerationSettings)


def make_task(config: Config):
    """Return the task: sounds become spectrograms, and texts become tokens."""
    from peftkit.backbones.processors import SpeechProcessor
    from peftkit.data.audio import read_audio_rows, read_spectrograms
    from peftkit.data.text_encoding import cut
    from peftkit.metrics.texts import transcription_metrics
    from peftkit.tasks.seq2seq import Seq2SeqTask

    processor = SpeechProcessor(config.model.source, config.data.language)

    def encode(rows, counts):
        return [{"audio": row["audio"]} for row in rows]  # files are read batch by batch

    def label(texts, counts):
        return cut(processor.label(texts), counts, max_length=config.data.max_length)

    return Seq2SeqTask(
        config,
        head="speech-seq2seq",
        processor=processor,
        tokenizer=processor.tokenizer,
        source="audio",
        target="text",
        encode=encode,
        label=label,
        pad=partial(read_spectrograms, processor.extractor),
        metrics=transcription_metrics,
        read=read_audio_rows,
        options=processor.options,
    )


if __name__ == "__main__":
    run_recipe(make_task, Config)
