"""Sort images into classes, with vision transformers and convolutional networks.

    accelerate launch recipes/image_classification.py --config
    recipes/configs/image_classification/quick.yaml

`data.train` is a folder with a sub-folder of images for each class, or a data file with rows
{"image": PATH, "label": ...}, where a relative path is taken from the data file's directory.
"""

from dataclasses import field
from functools import partial

from peftkit.config.keys import section
from peftkit.config.task_sections import LossSettings, TeacherSettings
from peftkit.runs.recipe import RecipeSettings, run_recipe


@section
class Config(RecipeSettings):
    """Sort images into classes."""

    loss: LossSettings = field(default_factory=LossSettings)
    teacher: TeacherSettings | None = None


def task(config: Config):
    """Return how an image becomes pixels."""
    from peftkit.backbones.processors import load_image_processor
    from peftkit.data.images import read_image_rows, read_pixels
    from peftkit.tasks.classification import ClassificationTask

    processor = load_image_processor(config.model.source)
    return ClassificationTask(
        config,
        head="image-classification",
        processor=processor,
        columns=["image"],
        encode=lambda row: {"image": row["image"]},
        pad=partial(read_pixels, processor),
        read=read_image_rows,
    )


if __name__ == "__main__":
    run_recipe(task, Config)
