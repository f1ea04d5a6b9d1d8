"""What finished runs predict for new rows: one run, or the mean of several."""

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

import peftkit
from peftkit.data.rows import Row
from peftkit.errors import ConfigError, DataError
from peftkit.metrics.measurement import Measurement
from peftkit.runs.opening import Opened
from peftkit.training.accelerator import make_accelerator
from peftkit.training.evaluation import evaluate

_ROWS_AT_A_TIME = 4096  # become what a model reads, and stay in memory while it reads them


def predict(runs: Sequence[Opened], rows: Sequence[Row], *, batch_size: int) -> list[Any]:
    """Return the model's output for each row; of several runs, the mean (an ensemble).

    Runs on the same backbone share it: it is loaded once, and only the adapters are exchanged.

    Args:
        runs: Finished runs of one task.
        rows: As the runs' task reads them.
        batch_size: Rows in a batch.

    Raises:
        ConfigError: the runs' labels differ, or their task's outputs have no mean.
    """
    outputs = []  # [runs, rows]
    for run, model, accelerator in _load_models(runs):
        found: list[Any] = []
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            some = rows[start : start + _ROWS_AT_A_TIME]
            found += run.task.outputs(model, some, accelerator, batch_size=batch_size)
        outputs.append(found)
    return outputs[0] if len(runs) == 1 else runs[0].task.average(outputs)


def measure(runs: Sequence[Opened], rows: Sequence[Row], *, batch_size: int) -> Measurement:
    """Return the metrics of a run on labelled rows, or of the mean of several runs.

    A single run's loss is among its metrics; a mean has none.

    Raises:
        ConfigError: the runs' labels differ, or their task's outputs have no mean.
        DataError: a row cannot be measured, or none can. No model has been loaded then.
    """
    task = runs[0].task
    examples = task.examples(rows)
    task.check_learned()
    if not examples:
        raise DataError(f"none of the {len(rows):,} rows gives anything to measure")
    measured_rows = task.measured_rows(rows)
    if len(runs) > 1:
        return task.measure(measured_rows, predict(runs, measured_rows, batch_size=batch_size))
    _, model, accelerator = next(_load_models(runs))
    loss = evaluate(
        model,
        examples,
        task.collate,
        accelerator,
        batch_size=batch_size,
        loss=task.loss,
    )
    outputs = task.outputs(model, measured_rows, accelerator, batch_size=batch_size)
    found = task.measure(measured_rows, outputs)
    return dataclasses.replace(found, metrics=loss | found.metrics)


def _load_models(runs: Sequence[Opened]) -> Iterator[tuple[Opened, nn.Module, Accelerator]]:
    """Yield each run with its model, on one backbone as long as the runs have the same."""
    _check_that_they_average(runs)
    backbone, model_settings = None, None
    for run in runs:
        if run.config.model != model_settings:
            backbone = None  # two do not have to fit into memory
            gc.collect()
            backbone, model_settings = run.backbone(), run.config.model
        model = peftkit.load(backbone, run.adapter)
        yield run, model, make_accelerator(run.config.train, model, run.directory)
        backbone = peftkit.detach(model)


def _check_that_they_average(runs: Sequence[Opened]) -> None:
    first = runs[0]
    for run in runs:
        if run.task.learned.get("labels") != first.task.learned.get("labels"):
            raise ConfigError(
                f"{run.directory} and {first.directory} have different labels; runs can only be "
                "averaged over the same labels"
            )
    if len(runs) > 1 and not first.task.averages:
        raise ConfigError(f"{first.directory} writes texts, which have no mean: name one run")
