"""Learn from the predictions of finished runs: distillation (arXiv:1503.02531), and self-training
on rows without labels.
"""

import gc
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from peftkit.data.row_files import Row
from peftkit.errors import ConfigError
from peftkit.runs.opening import open_run
from peftkit.tasks.base import Task


def taught(
    task: Task, rows: Sequence[Row], settings: Any, accelerator: Accelerator, *, batch_size: int
) -> list[Row]:
    """Return the rows with ``teacher``, the mean probabilities of the teachers, and the unlabelled
    rows they are sure of.

    The teachers are loaded one after the other, each beside the student.

    Args:
        task: The student's task.
        rows: Its labelled rows.
        settings: A `TeacherSettings`: the teachers' runs, the unlabelled rows, and how sure a
            teacher must be of one.
        accelerator: The student's.
        batch_size: Rows in a batch.

    Raises:
        ConfigError: a teacher has other labels than the student.
    """
    if not settings.runs:
        raise ConfigError(
            "teacher.runs names no run that teaches; name one, or leave the section out"
        )
    unlabelled = (
        [] if settings.unlabelled is None else task.read(settings.unlabelled, labelled=False)
    )
    unlabelled = [
        {name: value for name, value in row.items() if name != "label"} for row in unlabelled
    ]
    everything = [*rows, *unlabelled]
    outputs = []
    for directory in settings.runs:
        teacher = open_run(directory)
        theirs, ours = teacher.task.learned.get("labels"), task.learned["labels"]
        if theirs != ours:
            raise ConfigError(
                f"teacher.runs: {directory} has the labels {theirs}, this run has {ours}"
            )
        model = teacher.model().to(accelerator.device)
        outputs.append(teacher.task.outputs(model, everything, accelerator, batch_size=batch_size))
        del model
        gc.collect()
        torch.cuda.empty_cache()
    probabilities = task.averaged(outputs)
    known = [row | {"teacher": tuple(each)} for row, each in zip(rows, probabilities, strict=False)]
    new = zip(unlabelled, probabilities[len(rows) :], strict=True)
    return known + [
        row | {"teacher": tuple(each)} for row, each in new if max(each) >= settings.min_confidence
    ]
