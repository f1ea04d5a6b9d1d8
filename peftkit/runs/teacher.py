"""Learn from the predictions of finished runs.

This is distillation (arXiv:1503.02531), and self-training where rows have no labels.
"""

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from peftkit.data.rows import Row, Rows
from peftkit.errors import ConfigError
from peftkit.runs.opening import Opened, open_run
from peftkit.runs.prediction import predict
from peftkit.tasks.base import Task


def add_teacher(task: Task, rows: Rows, settings: Any, *, batch_size: int) -> Iterator[Row]:
    """Return the rows with ``teacher``, the mean probabilities of the teachers for each.

    The unlabelled rows that the teachers are sure of come after them. The teachers are loaded one
    after the other, and are gone before the student is loaded.

    Args:
        task: The student's task.
        rows: Its labelled rows.
        settings: A `TeacherSettings`: the teachers' runs, the unlabelled rows, and how sure a
            teacher must be of one.
        batch_size: Rows in a batch.

    Raises:
        ConfigError: no run is named, or a teacher has other labels than the student.
    """
    if not settings.runs:
        raise ConfigError(
            "teacher.runs names no run that teaches; name one, or leave the section out"
        )
    teachers = [open_run(directory) for directory in settings.runs]
    for teacher in teachers:
        _check_labels(teacher, task)
    everything = Rows.joined([rows, _read_unlabelled(task, settings.unlabelled)])
    probabilities = predict(teachers, everything, batch_size=batch_size)  # [rows, classes]
    gc.collect()  # the last teacher
    torch.cuda.empty_cache()
    return _taught(everything, probabilities, len(rows), settings.min_confidence)


def _taught(
    rows: Rows, probabilities: Sequence[Any], labelled: int, min_confidence: float
) -> Iterator[Row]:
    """Yield the rows with a label, and those that the teachers are sure of."""
    for place, row in enumerate(rows):
        if place < labelled or max(probabilities[place]) >= min_confidence:
            yield row | {"teacher": tuple(probabilities[place])}


def _read_unlabelled(task: Task, path: str | None) -> Rows:
    """Return the rows of a file without their labels, if they have any."""
    if path is None:
        return Rows.of([])
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
