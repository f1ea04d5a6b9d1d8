"""Judge pairs of texts: do they mean the same, does one answer the other, does it fit a reader?

    accelerate launch recipes/text_pair.py --config text_pair/quick

Rows are {"text": ..., "other": ..., "label": ...}. With `data.target: score` they have "score", a
number, instead of the label. If every row has a "group" (a reader, a query), the pairs of a group
are ranked, by the probability of the second label or by the score; the report then has NDCG, mean
reciprocal rank and hit rates.
"""

from dataclasses import field
from typing import Literal

from peftkit.config.keys import section
from peftkit.config.sections import LabelSettings, OversamplingSettings, TextSettings
from peftkit.config.task_sections import AugmentSettings, LossSettings, TeacherSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Data(TextSettings, LabelSettings, OversamplingSettings):
    """Which pairs to learn from."""

    target: Literal["label", "score"] = "label"
    """What the model predicts: one of several labels, or a number."""


@section
class Config(RecipeSettings):
    """Judge pairs of texts."""

    data: Data
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings | None = None
    teacher: TeacherSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.target == "label":
            return
        for name in ("oversample", "label_names"):
            if getattr(self.data, name):
                raise ValueError(
                    f"data.{name} is for labels: leave it out, or leave out data.target: score"
                )
        for name in ("class_weights", "label_smoothing", "focal_gamma", "r_drop"):
            if getattr(self.loss, name):
                raise ValueError(
                    f"loss.{name} is for labels: leave it out, or leave out data.target: score"
                )
        if self.teacher is not None:
            raise ValueError(
                "teacher needs labels, because it teaches probabilities, not scores: leave it out, "
                "or leave out data.target: score"
            )


def make_task(config: Config):
    """Return the task: a pair becomes tokens, and the model predicts its label or score."""
    import peftkit
    from peftkit.data.padding import pad_with
    from peftkit.data.text_encoding import encode_pairs
    from peftkit.tasks.classification import ClassificationTask, ScoringTask

    tokenizer = peftkit.load_tokenizer(config.model.source)

    def encode(rows, counts):
        texts = [row["text"] for row in rows]
        others = [row["other"] for row in rows]
        return encode_pairs(tokenizer, texts, others, counts, max_length=config.data.max_length)

    task_class = ClassificationTask if config.data.target == "label" else ScoringTask
    return task_class(
        config,
        head="sequence-classification",
        processor=tokenizer,
        columns=["text", "other"],
        encode=encode,
        pad=pad_with(tokenizer),
    )


if __name__ == "__main__":
    run_recipe(make_task, Config)
