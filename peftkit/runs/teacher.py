"""Learn from the predictions of finished runs.

This is distillation (arXiv:1503.02531), and self-training where rows have no labels.
"""

import gc
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from peftkit.data.rows import Row
from peftkit.errors import ConfigError
from peftkit.runs.opening import Opened, open_run
from peftkit.tasks.base import Task


def add_teacher(
    task: Task, rows: Sequence[Row], settings: Any, accelerator: Accelerator, *, batch_size: int
) -> list[Row]:
    """Return the rows with ``teacher``, the mean probabilities of the teachers for each.

    The unlabelled rows that the teachers are sure of come after them. The teachers are loaded one
    after the other, each beside the student.

    Args:
        task: The student's task.
        rows: Its labelled rows.
        settings: A `TeacherSettings`: the teachers' runs, the unlabelled rows, and how sure a
            teacher must be of one.
        accelerator: The student's.
        batch_size: Rows in a batch.

    Raises:
        ConfigError: no run is named, or a teacher has other labels than the student.
    """
    if not settings.runs:
        raise ConfigError(
            "teacher.runs names no run that teaches; name one, or leave the section out"
        )
    everything = [*rows, *_read_unlabelled(task, settings.unlabelled)]
    outputs = []  # [teachers, rows, classes]
    for directory in settings.runs:
        teacher = open_run(directory)
        _check_labels(teacher, task)
        model = teacher.model().to(accelerator.device)
        outputs.append(teacher.task.outputs(model, everything, accelerator, batch_size=batch_size))
        del model  # before the next one is loaded
        gc.collect()
        torch.cuda.empty_cache()
    probabilities = task.average(outputs)
    learned = []
    for place, row in enumerate(everything):
        is_labelled = place < len(rows)
        if is_labelled or max(probabilities[place]) >= settings.min_confidence:
            learned.append(row | {"teacher": tuple(probabilities[place])})
    return learned


def _read_unlabelled(task: Task, path: str | None) -> Sequence[Row]:
    """Return the rows of a file without their labels, if they have any."""
    if path is None:
        return []
    return task.read(path, labelled=False).map(_without_label)


def _without_label(row: Row) -> Row:
    row.pop("label", None)
    return row


def _check_labels(teacher: Opened, student: Task) -> None:
    theirs, ours = teacher.task.learned.get("labels"), student.learned["labels"]
    if theirs != ours:
        raise ConfigError(
            f"teacher.runs: {teacher.directory} has the labels {theirs}, this run has {ours}"
        )
