"""Sort texts into classes: sentiment, topics, intents, in any language that the backbone reads.

    accelerate launch recipes/text_classification.py --config text_classification/quick

Rows are {"text": ..., "label": ...}; a label is a text, a whole number, true or false. The report
has precision, recall and F1 of each class, and the confusion matrix. For rare classes, try class
weights or focal loss (`loss`). With two classes, `threshold` is the probability from which the
`positive` class is predicted.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from peftkit.config.keys import section
from peftkit.config.sections import LabelSettings, OversamplingSettings, TextSettings
from peftkit.config.task_sections import AugmentSettings, LossSettings, TeacherSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Data(TextSettings, LabelSettings, OversamplingSettings):
    """Which texts to learn from."""


@section
class Config(RecipeSettings):
    """Sort texts into classes."""

    data: Data
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings | None = None
    teacher: TeacherSettings | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["best-f1"] | None = None
    """With two classes, the probability from which the positive one is predicted. "best-f1" finds
    it on the held-out rows.
    """
    positive: str | None = None
    """With two classes, the label that F1 and the threshold are about; null is the last one, by
    number or alphabet.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold == "best-f1" and self.data.evaluation is None:
            raise ValueError("threshold: best-f1 is found on held-out rows: set data.evaluation")


def make_task(config: Config):
    """Return the task: a text becomes tokens, and the model predicts its class."""
    import peftkit
    from peftkit.data.padding import pad_with
    from peftkit.data.text_encoding import encode_texts
    from peftkit.tasks.classification import ClassificationTask

    tokenizer = peftkit.load_tokenizer(config.model.source)

    def encode(rows, counts):
        texts = [row["text"] for row in rows]
        return encode_texts(tokenizer, texts, counts, max_length=config.data.max_length)

    return ClassificationTask(
        config,
        head="sequence-classification",
        processor=tokenizer,
        columns=["text"],
        encode=encode,
        pad=pad_with(tokenizer),
    )


if __name__ == "__main__":
    run_recipe(make_task, Config)
