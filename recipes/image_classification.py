"""Sort images into classes, with vision transformers and convolutional networks.

    accelerate launch recipes/image_classification.py --config image_classification/quick

`data.train` is a folder with a sub-folder of images for each class, or a data file with rows
{"image": PATH, "label": ...}. A relative path is relative to the directory of the data file.
"""

from dataclasses import field
from functools import partial

from peftkit.config.keys import section
from peftkit.config.sections import LabelSettings, OversamplingSettings, RowSettings
from peftkit.config.task_sections import LossSettings, TeacherSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Data(RowSettings, LabelSettings, OversamplingSettings):
    """Which images to learn from."""


@section
class Config(RecipeSettings):
    """Sort images into classes."""

    data: Data
    loss: LossSettings = field(default_factory=LossSettings)
    teacher: TeacherSettings | None = None


def make_task(config: Config):
    """Return the task: an image processor turns image files into pixels."""
    from peftkit.backbones.processors import load_image_processor
    from peftkit.data.images import read_image_rows, read_pixels
    from peftkit.tasks.classification import ClassificationTask

    processor = load_image_processor(config.model.source)

    def encode(rows, counts):
        return [{"image": row["image"]} for row in rows]  # files are read batch by batch

    return ClassificationTask(
        config,
        head="image-classification",
        processor=processor,
        columns=["image"],
        encode=encode,
        pad=partial(read_pixels, processor),
        read=read_image_rows,
    )


if __name__ == "__main__":
    run_recipe(make_task, Config)
