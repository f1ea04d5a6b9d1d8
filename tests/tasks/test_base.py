"""The example in `peftkit.tasks.base` is a task that trains, predicts and is measured."""

import inspect
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import peftkit
from peftkit.config.reading import build
from peftkit.data.row_files import read_rows
from peftkit.files import read_json, write_rows
from peftkit.losses.base import ModelLoss
from peftkit.metrics.measurement import Measurement
from peftkit.modes import evaluation_mode
from peftkit.runs.finetune import finetune
from peftkit.runs.recipe import RecipeSettings
from peftkit.tasks import base
from peftkit.tasks.base import Task
from peftkit.tasks.inference import in_shares

MODEL = Path(__file__).parents[2] / "recipes" / "models" / "char-bert-zh" / "config.json"


@pytest.fixture
def stars_task():
    """The class that the docstring of the module shows."""
    text = inspect.cleandoc(base.__doc__)
    start = text.index("    @dataclass")
    code = inspect.cleandoc(text[start:])
    names = {
        "dataclass": dataclass,
        "evaluation_mode": evaluation_mode,
        "in_shares": in_shares,
        "Measurement": Measurement,
        "ModelLoss": ModelLoss,
        "peftkit": peftkit,
        "read_rows": read_rows,
        "Task": Task,
        "torch": torch,
    }
    exec(code, names)
    return names["StarsTask"]


def test_the_shortest_task_in_the_documentation_trains_and_is_measured(stars_task, tmp_path):
    rows = [{"text": "good" if stars > 2 else "bad", "stars": stars} for stars in range(5)]
    write_rows(tmp_path / "rows.jsonl", rows)
    values = {
        "model": {"source": str(MODEL), "dtype": "float32", "quantization": None},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "train": {"max_steps": 2, "batch_size": 4},
        "run_dir": str(tmp_path / "run"),
    }
    config = build(RecipeSettings, values, "a test")
    finetune(stars_task, config, Path("stars.py"))
    metrics = read_json(tmp_path / "run" / "after.json")["metrics"]
    assert 0 <= metrics["accuracy"] <= 1
    assert metrics["loss"] > 0
    assert "| good |" in (tmp_path / "run" / "report.md").read_text()
