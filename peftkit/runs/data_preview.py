"""The preview of a run's rows: before training, or beside the report."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.data.examples import lengths_of
from peftkit.data.preview.contents import Preview, check_ends, list_warnings
from peftkit.data.preview.page import page
from peftkit.data.preview.statistics import Statistics
from peftkit.data.rows import Rows
from peftkit.errors import DataError
from peftkit.files import write_file
from peftkit.runs.training_rows import TrainingRows
from peftkit.tasks.base import Task

FEW_ROWS = 1000  # are enough for a first look, and take seconds


def spread_rows(rows: Rows, most: int = FEW_ROWS) -> Rows:
    """Return the rows, or as many of them as are enough for a look, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows.select(np.arange(most) * len(rows) // most)


def preview_rows(
    task: Task, config: Any, rows: TrainingRows, title: str, *, count: int, takes_all: bool = False
) -> Preview:
    """Return a preview of rows that no run has read yet; no model is loaded.

    Args:
        task: The task, which learns the labels of the rows.
        config: The recipe's config.
        rows: The rows of a run.
        title: What the preview is of.
        count: How many examples to show.
        takes_all: Whether to take all rows, and not a thousand of them.

    Raises:
        DataError: a row cannot be read or encoded.
    """
    seen = rows.training if takes_all else spread_rows(rows.training)
    known = dict(task.learned)
    try:
        task.fit(seen)
    except DataError:  # a few rows may have one class where all have several
        task.learned = known
        task.fit(rows.training)
    refused = []
    examples = task.examples(seen)
    try:
        task.check_learned()
    except DataError as problem:  # training would refuse the examples; here they are to be seen
        refused.append(f"Training stops at these rows: {problem}.")
    found = preview_examples(
        task, config, seen, examples, title, count=count, of=len(rows.training)
    )
    return dataclasses.replace(
        found,
        warnings=(*refused, *found.warnings),
        remarks="; ".join([found.remarks, *rows.decided]),
    )


def preview_examples(
    task: Task,
    config: Any,
    rows: Rows,
    examples: Sequence[Any],
    title: str,
    *,
    count: int,
    of: int | None = None,
    processes: int = 1,
) -> Preview:
    """Return a preview of examples that a task has just made.

    Args:
        task: The task; its counts are those of the examples.
        config: The recipe's config.
        rows: The rows.
        examples: What the task made of them.
        title: What the preview is of.
        count: How many examples to show.
        of: How many rows an epoch has; None if it has just these.
        processes: How many processes train.
    """
    few = spread_rows(rows)
    texts = getattr(examples, "texts", examples)  # packs are made of them
    train = config.train
    learned = task.counts["supervised"]
    statistics = Statistics(
        rows=len(rows) if of is None else of,
        seen_rows=len(rows),
        lengths=lengths_of(texts),
        learned=learned if hasattr(task.example_class, "supervised") else None,
        units=len(examples),
        step_size=train.batch_size * train.accumulate * processes,
        max_length=getattr(config.data, "max_length", None),
        formats=_formats(few),
        classes=_classes(task),
    )
    warnings = [
        *list_warnings(task.counts, statistics),
        *check_ends(texts[:FEW_ROWS], task.processor),
        *(f"{note}." for note in task.notes),
    ]
    shown = task.show_rows(few, count)
    return Preview(title, statistics, tuple(warnings), task.remarks(), tuple(shown))


def write_page(preview: Preview, path: Path) -> None:
    """Write a preview as an HTML file, whole or not at all."""
    write_file(path, page(preview).encode())


def _formats(rows: Rows) -> tuple[tuple[str, int], ...]:
    """Return the formats of rows, and how many rows have each."""
    counts: Counter[str] = Counter()
    for row in rows:
        if "format" in row:
            counts[row["format"]] += 1
    return tuple(counts.most_common())


def _classes(task: Task) -> tuple[tuple[str, int], ...]:
    """Return the labels that a task has learned, and how often each is to be predicted."""
    learned = task.learned
    if "counts" not in learned:
        return ()
    return tuple(zip(learned["labels"], learned["counts"], strict=True))
