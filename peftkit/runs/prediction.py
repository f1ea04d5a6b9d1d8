"""What finished runs say of new rows: one run, or the mean of several."""

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

import peftkit
from peftkit.data.row_files import Row
from peftkit.errors import ConfigError
from peftkit.metrics.measured import Measured
from peftkit.runs.opening import Opened
from peftkit.training.accelerator import make_accelerator
from peftkit.training.evaluation import evaluate


def outputs_of(runs: Sequence[Opened], rows: Sequence[Row], *, batch_size: int) -> list[Any]:
    """Return what a run's model says of each row; of several runs, the mean (an ensemble).

    Runs on the same backbone share it: it is loaded once, and only the adapters are exchanged.

    Args:
        runs: Finished runs of one task.
        rows: As the runs' task reads them.
        batch_size: Rows in a batch.

    Raises:
        ConfigError: the runs' labels differ, or their task's outputs have no mean.
    """
    outputs = [
        run.task.outputs(model, rows, accelerator, batch_size=batch_size)
        for run, model, accelerator in _models(runs)
    ]
    return outputs[0] if len(runs) == 1 else runs[0].task.averaged(outputs)


def measured(runs: Sequence[Opened], rows: Sequence[Row], *, batch_size: int) -> Measured:
    """Return the metrics of a run, or of several runs' mean, on labelled rows; of a single run the
    loss too.

    Raises:
        ConfigError: the runs' labels differ, or their task's outputs have no mean.
    """
    task = runs[0].task
    chosen = task.measured_rows(rows)
    if len(runs) > 1:
        return task.measure(chosen, outputs_of(runs, chosen, batch_size=batch_size))
    _, model, accelerator = next(_models(runs))
    examples = task.examples(rows)
    loss = evaluate(
        model, examples, task.collate, accelerator, batch_size=batch_size, loss=task.loss
    )
    found = task.measure(chosen, task.outputs(model, chosen, accelerator, batch_size=batch_size))
    return dataclasses.replace(found, metrics=loss | found.metrics)


def _models(runs: Sequence[Opened]) -> Iterator[tuple[Opened, nn.Module, Accelerator]]:
    """Yield each run with its model, on a backbone that runs share where they can."""
    first, backbone, of = runs[0], None, None
    for run in runs:
        if run.task.learned.get("labels") != first.task.learned.get("labels"):
            raise ConfigError(
                f"{run.directory} and {first.directory} have other labels: they cannot predict together"
            )
    if len(runs) > 1 and not first.task.averages:
        raise ConfigError(f"{first.directory} writes texts, which have no mean: name one run")
    for run in runs:
        if of is None or of.config.model != run.config.model:
            backbone = None
            gc.collect()
            backbone, of = run.backbone(), run
        model = peftkit.load(backbone, run.adapter)
        yield run, model, make_accelerator(run.config.train, model, run.directory)
        backbone = peftkit.detach(model)
