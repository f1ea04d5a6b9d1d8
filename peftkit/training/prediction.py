"""What finished runs say of new rows: one run, or the mean of several."""

import dataclasses
import gc
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

import peftkit
from peftkit.data.formats import Row
from peftkit.errors import ConfigError
from peftkit.training.evaluation import evaluate
from peftkit.training.measured import Measured
from peftkit.training.opening import Opened
from peftkit.training.preparation import accelerator_for


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
    first, backbone, of = runs[0], None, None
    outputs = []
    for run in runs:
        if run.task.learned.get("labels") != first.task.learned.get("labels"):
            raise ConfigError(f"{run.directory} and {first.directory} have other labels: they cannot predict together")
        if of is None or of.config.model != run.config.model:
            backbone = None
            gc.collect()
            backbone, of = run.backbone(), run
        model = peftkit.load(backbone, run.adapter)
        outputs.append(run.task.outputs(model, rows, _accelerator(run, model), batch_size=batch_size))
        backbone = peftkit.detach(model)
    return outputs[0] if len(runs) == 1 else first.task.averaged(outputs)


def measured(runs: Sequence[Opened], rows: Sequence[Row], *, batch_size: int) -> Measured:
    """Return the metrics of a run, or of several runs' mean, on labelled rows; of a single run the loss too."""
    run = runs[0]
    chosen = run.task.measured_rows(rows)
    found = run.task.measure(chosen, outputs_of(runs, chosen, batch_size=batch_size))
    if len(runs) > 1:
        return found
    model = run.model()
    task = run.task
    loss = evaluate(
        model,
        task.examples(rows),
        task.collate,
        _accelerator(run, model),
        batch_size=batch_size,
        objective=task.objective,
    )
    return dataclasses.replace(found, metrics=loss | found.metrics)


def _accelerator(run: Opened, model: torch.nn.Module) -> Accelerator:
    return accelerator_for(run.config.train, model, run.directory)
