"""Tag words: named entities, parts of speech.

    accelerate launch recipes/token_classification.py --config token_classification/quick

Rows are {"tokens": [...], "tags": [...]}, or {"text": ..., "spans": [{"start": ..., "end": ...,
"label": ...}, ...]} with positions in characters. If the tags mark entities (B-, I-, O), the report
has the F1 of whole entities, overall and by type.
"""

from dataclasses import field
from typing import Literal

from peftkit.config.keys import section
from peftkit.config.sections import LabelSettings, TextSettings
from peftkit.config.task_sections import LossSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Data(TextSettings, LabelSettings):
    """Which sentences to learn from."""

    label_on: Literal["first", "last"] = "first"
    """Which of a word's tokens carries its tag. "last" is better for decoders: by then they have
    read the whole word.
    """


@section
class Config(RecipeSettings):
    """Tag words."""

    data: Data
    loss: LossSettings = field(default_factory=LossSettings)


def make_task(config: Config):
    """Return the task: words become tokens, and the model predicts their tags."""
    import peftkit
    from peftkit.tasks.token_classification import TokenClassificationTask

    return TokenClassificationTask(config, peftkit.load_tokenizer(config.model.source))


if __name__ == "__main__":
    run_recipe(make_task, Config)
