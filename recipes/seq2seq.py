"""Turn one text into another: translation, summaries.

    accelerate launch recipes/seq2seq.py --config seq2seq/quick

Rows are {"source": ..., "target": ...}. The report has BLEU, chrF and exact matches for
translations, and ROUGE for summaries.
"""

from dataclasses import field
from functools import partial
from typing import Literal

from peftkit.config.keys import section
from peftkit.config.sections import GenerationSettings, TextSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Data(TextSettings):
    """Which texts to learn from."""

    prompt: str = ""
    """A text to put before every source, such as T5's "translate English to German: "."""
    source_language: str | None = None
    """The language of the sources, for NLLB, mBART-50 and M2M100: the tokenizer's own name, such as
    eng_Latn or en_XX.
    """
    target_language: str | None = None
    """The language of the targets, likewise."""


@section
class Config(RecipeSettings):
    """Turn one text into another."""

    data: Data
    metrics: Literal["translation", "summary"] = "translation"
    """BLEU, chrF and exact matches, or ROUGE."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)


def make_task(config: Config):
    """Return the task: both texts become tokens, and generated targets are measured."""
    import peftkit
    from peftkit.backbones.processors import set_languages
    from peftkit.data.padding import pad_with
    from peftkit.data.text_encoding import encode_targets, encode_texts
    from peftkit.metrics.texts import summary_metrics, translation_metrics
    from peftkit.tasks.seq2seq import Seq2SeqTask

    data = config.data
    tokenizer = peftkit.load_tokenizer(config.model.source)
    options = set_languages(tokenizer, data.source_language, data.target_language)

    def encode(rows, counts):
        sources = [data.prompt + row["source"] for row in rows]
        return encode_texts(tokenizer, sources, counts, max_length=data.max_length)

    return Seq2SeqTask(
        config,
        head="seq2seq-lm",
        processor=tokenizer,
        tokenizer=tokenizer,
        source="source",
        target="target",
        encode=encode,
        label=partial(encode_targets, tokenizer, max_length=data.max_length),
        pad=pad_with(tokenizer),
        metrics=translation_metrics if config.metrics == "translation" else summary_metrics,
        options=options,
    )


if __name__ == "__main__":
    run_recipe(make_task, Config)
