"""The Accelerator of a run, beside those that a user has made."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.training.accelerator import make_accelerator
from tests.training.job import train


@pytest.mark.parametrize(("wanted", "own"), [("no", "bf16"), ("bf16", "no"), ("bf16", "bf16")])
def test_a_users_accelerator_keeps_its_precision_and_its_accumulation(
    llama_dir, tmp_path, wanted, own
):
    users = Accelerator(mixed_precision=own, gradient_accumulation_steps=4)
    model = peftkit.attach(peftkit.load_backbone(llama_dir), peftkit.LoraConfig(r=2))
    peftkit.save(model, tmp_path / "adapter")
    peftkit.load(peftkit.detach(model), tmp_path / "adapter")
    made = make_accelerator(TrainSettings(precision=wanted), model, tmp_path)
    train(tmp_path / "run", llama_dir, {"precision": wanted, "max_steps": 1})
    assert (made.mixed_precision, made.gradient_accumulation_steps) == (wanted, 1)
    assert (users.mixed_precision, users.gradient_accumulation_steps) == (own, 4)
    assert AcceleratorState().mixed_precision == own
    assert GradientState().num_steps == 4


def test_two_runs_in_one_process_may_differ_in_precision(backbone, tmp_path):
    first = make_accelerator(TrainSettings(precision="no"), backbone, tmp_path)
    second = make_accelerator(TrainSettings(precision="auto"), backbone, tmp_path)
    assert backbone.dtype == torch.bfloat16
    assert (first.mixed_precision, second.mixed_precision) == ("no", "bf16")


def test_an_accelerator_that_accumulates_by_itself_is_refused(llama_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match=r"leave it at 1 and set train\.accumulate"):
        train(tmp_path, llama_dir, {"max_steps": 1})
