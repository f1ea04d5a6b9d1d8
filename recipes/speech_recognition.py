"""Write down what is said, with encoder-decoders of Whisper's kind.

    accelerate launch recipes/speech_recognition.py --config
    recipes/configs/speech_recognition/quick.yaml

Rows are {"audio": PATH, "text": ...}; a relative path is taken from the data file's directory.
Sound is brought to the model's sampling rate; what is longer than the model's window (30 seconds
for Whisper) is cut. The report has word and character error rates.
"""

from dataclasses import field
from functools import partial
from typing import Annotated

from pydantic import Field

from peftkit.config.keys import section
from peftkit.config.sections import GenerationSettings, RowSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Recordings(RowSettings):
    """Which recordings to learn from."""

    max_length: Annotated[int, Field(ge=2)] = 448
    """Longest text in tokens; what is longer is cut, and counted."""
    language: str | None = None
    """The language that is spoken, such as "german"; a multilingual model needs it, another takes
    none.
    """


@section
class Config(RecipeSettings):
    """Write down what is said."""

    data: Recordings
    generation: GenerationSettings = field(default_factory=GenerationSettings)


def task(config: Config):
    """Return how sound becomes features and texts become tokens."""
    from peftkit.backbones.processors import SpeechProcessor
    from peftkit.data.audio import read_audio_rows, read_spectrograms
    from peftkit.metrics.texts import transcription_metrics
    from peftkit.tasks.seq2seq import Seq2SeqTask

    processor = SpeechProcessor(config.model.source, config.data.language)
    return Seq2SeqTask(
        config,
        head="speech-seq2seq",
        processor=processor,
        tokenizer=processor.tokenizer,
        source="audio",
        target="text",
        encode=lambda row: {"audio": row["audio"]},
        label=partial(processor.label, max_length=config.data.max_length),
        pad=partial(read_spectrograms, processor.extractor),
        metrics=transcription_metrics,
        read=read_audio_rows,
        options=processor.options,
    )


if __name__ == "__main__":
    run_recipe(task, Config)
