"""Tag words: named entities, parts of speech.

    accelerate launch recipes/token_classification.py --config
    recipes/configs/token_classification/quick.yaml

Rows are {"tokens": [...], "tags": [...]}, or {"text": ..., "spans": [{"start": ..., "end": ...,
"label": ...}, ...]} with places in characters. Where tags mark entities (B-, I-, O), the report has
F1 of whole entities, also by type.
"""

from dataclasses import field
from typing import Literal

from peftkit.config.keys import section
from peftkit.config.sections import TextSettings
from peftkit.config.task_sections import LossSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Sentences(TextSettings):
    """Which sentences to learn from."""

    label_on: Literal["first", "last"] = "first"
    """Which of a word's tokens carries its tag; the last is better for decoders, which have then
    read the whole word.
    """


@section
class Config(RecipeSettings):
    """Tag words."""

    data: Sentences
    loss: LossSettings = field(default_factory=LossSettings)


def task(config: Config):
    """Return how words become tokens and tags."""
    import peftkit
    from peftkit.tasks.token_classification import TokenClassificationTask

    return TokenClassificationTask(config, peftkit.load_tokenizer(config.model.source))


if __name__ == "__main__":
    run_recipe(task, Config)
