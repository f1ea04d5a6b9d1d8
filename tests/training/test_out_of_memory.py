"""Memory that runs out: what is said, and the same step in smaller passes. torch.OutOfMemoryError
is injected.
"""

import gc
import json

import pytest
import torch

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.data.padding import PadRight
from peftkit.errors import OutOfMemoryError
from peftkit.files import read_tensors
from peftkit.losses.base import CausalLMLoss
from peftkit.training.accelerator import make_accelerator
from peftkit.training.callbacks import Callback
from peftkit.training.evaluation import evaluate
from peftkit.training.loop import Training
from peftkit.training.metrics_log import read_metrics
from peftkit.training.out_of_memory import explained
from tests.training.job import ragged_examples, train, trained


def full(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class _Full(torch.autograd.Function):
    """Has a forward pass, but no memory for the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        full()


class FullAt(Callback):
    """Runs out of memory after a step, or in each evaluation."""

    def __init__(self, step=None, measures=False):
        self.step, self.measures = step, measures

    def after_optimizer_step(self, state):
        if state.step == self.step:
            full()

    def measure(self, state):
        return full() if self.measures else {}


def limit(monkeypatch, examples, *, training=True, where="forward"):
    """Let no batch of more than so many examples through the loss, in training or in evaluation;
    return the sizes tried.
    """
    sizes, original = [], CausalLMLoss.sum

    def sum_of_losses(self, model, batch):
        summed = original(self, model, batch)
        if model.training == training:
            sizes.append(len(batch["labels"]))
            if sizes[-1] > examples:
                return _Full.apply(summed) if where == "backward" else full()
        return summed

    monkeypatch.setattr(CausalLMLoss, "sum", sum_of_losses)
    return sizes


# what is said


def explanation(place, settings=None, **options):
    with (
        pytest.raises(OutOfMemoryError) as caught,
        explained(place, TrainSettings(**(settings or {})), **options),
    ):
        full()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    first, *remedies = str(caught.value).splitlines()
    assert "GiB are free on this machine" in first
    return first, [line.split("  (")[0].strip() for line in remedies]


@pytest.mark.skipif(torch.cuda.is_available(), reason="names the GPU there")
def test_the_error_says_where_and_what_to_set_most_effective_first():
    first, remedies = explanation("forward", {"batch_size": 4, "accumulate": 2}, longest=300)
    assert first.startswith("out of memory in the forward pass: this process uses ")
    assert remedies == [
        "--train.batch_size 1 --train.accumulate 8",
        "--train.gradient_checkpointing true",
        "--model.quantization nf4",
        "--data.max_length 150",
        "a smaller backbone",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="names the GPU there")
def test_what_is_set_already_is_not_proposed():
    settings = {"batch_size": 1, "gradient_checkpointing": True}
    assert explanation("backward", settings, quantization="nf4")[1] == ["a smaller backbone"]
    assert explanation("load")[1] == ["--model.quantization nf4", "a smaller backbone"]
    assert explanation("attach", quantization="int8")[1][0] == "--model.quantization nf4"
    assert explanation("evaluation", quantization="nf4", longest=64)[1][:2] == [
        "--train.evaluation_batch_size 1",
        "--data.max_length 32",
    ]
    assert "evaluation_batch_size" not in str(
        explanation("evaluation", {"evaluation_batch_size": 1})
    )


def test_the_machines_own_memory_counts_too_and_other_errors_pass():
    with pytest.raises(OutOfMemoryError), explained("load", TrainSettings()):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"
        )
    with pytest.raises(RuntimeError, match="something else"), explained("load", TrainSettings()):
        raise RuntimeError("something else")


@pytest.mark.parametrize("place", ["forward", "backward", "step", "evaluation", "callback"])
def test_a_run_that_does_not_fit_says_what_to_change(llama_dir, tmp_path, monkeypatch, place):
    callbacks = [FullAt(measures=True)] if place == "callback" else []
    if place in ("forward", "backward", "evaluation"):
        limit(monkeypatch, 0, training=place != "evaluation", where=place)
    if place == "step":
        monkeypatch.setattr(torch.optim.AdamW, "step", full)
    settings = {"batch_size": 4, "evaluate_every": 1, "max_steps": 1, "auto_batch": False}
    expected = {
        "step": "in the optimiser's step",
        "callback": "in the evaluation",
        "evaluation": "in the evaluation",
    }
    with pytest.raises(OutOfMemoryError, match=expected.get(place, f"in the {place} pass")):
        train(tmp_path, llama_dir, settings, callbacks=callbacks, evaluation=ragged_examples(3))


# smaller passes


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_does_not_fit_is_made_in_smaller_passes(
    llama_dir, tmp_path, monkeypatch, where, capfd
):
    """The same examples and the same gradient; and the dropout of a run that was cut so from its
    start.
    """
    cut = {"batch_size": 2, "accumulate": 4, "max_steps": 3}
    expected, _ = train(tmp_path / "cut", llama_dir, cut, dropout=0.3)
    sizes = limit(monkeypatch, 2, where=where)
    settings = {"batch_size": 8, "max_steps": 3, "auto_batch": True}
    found, _ = train(tmp_path / "auto", llama_dir, settings, dropout=0.3)
    assert all(
        torch.equal(value, trained(found)[name]) for name, value in trained(expected).items()
    )
    assert sizes[:2] == [6, 4]  # the first step is the short one of its epoch
    assert set(sizes[2:]) == {2}
    metrics = read_metrics(tmp_path / "auto" / "metrics.jsonl")
    noted = [
        {k: line[k] for k in ("step", "batch_size", "accumulate")}
        for line in metrics
        if line["kind"] == "auto_batch"
    ]
    assert noted == [
        {"step": 1, "batch_size": 4, "accumulate": 2},
        {"step": 1, "batch_size": 2, "accumulate": 4},
    ]
    assert "out of memory: from step 1 on, 4 passes of 2 make one step" in capfd.readouterr().err


def test_a_resumed_run_remembers_what_fits(llama_dir, tmp_path, monkeypatch):
    sizes = limit(monkeypatch, 3)
    settings = {"batch_size": 6, "auto_batch": True, "save_every": 0.25, "epochs": 1}
    whole, _ = train(tmp_path / "whole", llama_dir, settings, dropout=0.3)
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path / "cut", llama_dir, settings, dropout=0.3, callbacks=[FullAt(step=3)])
    sizes.clear()
    resumed, _ = train(tmp_path / "cut", llama_dir, settings, dropout=0.3)
    assert max(sizes) == 3
    assert all(torch.equal(value, trained(resumed)[name]) for name, value in trained(whole).items())


def test_a_batch_of_one_that_does_not_fit_gives_the_advice(llama_dir, tmp_path, monkeypatch):
    sizes = limit(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError, match="gradient_checkpointing true"):
        train(tmp_path, llama_dir, {"batch_size": 5, "auto_batch": True})
    assert sizes == [2, 2, 2, 1]  # the first step has two examples


def test_evaluations_get_smaller_batches(llama_dir, tmp_path, monkeypatch):
    held_out = ragged_examples(9, seed=4)
    settings = {"batch_size": 8, "max_steps": 2, "evaluate_every": 0.34, "restore_best": False}
    train(tmp_path / "free", llama_dir, settings, evaluation=held_out)
    sizes = limit(monkeypatch, 3, training=False)
    train(tmp_path / "tight", llama_dir, settings | {"auto_batch": True}, evaluation=held_out)
    assert sizes == [8, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    curves = [
        [
            line["loss"]
            for line in read_metrics(tmp_path / run / "metrics.jsonl")
            if line["kind"] == "evaluation"
        ]
        for run in ("free", "tight")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


def test_what_an_attempt_held_is_free_before_the_next(llama_dir, tmp_path, monkeypatch):
    alive, original = [], CausalLMLoss.sum

    def sum_of_losses(self, model, batch):
        gc.collect()
        alive.append(sum(each.numel() for each in gc.get_objects() if type(each) is torch.Tensor))
        summed = original(self, model, batch)
        return full() if len(alive) in (1, 2) else summed

    monkeypatch.setattr(CausalLMLoss, "sum", sum_of_losses)
    train(tmp_path, llama_dir, {"batch_size": 8, "max_steps": 1, "auto_batch": True})
    assert alive[1] <= alive[0]
    assert alive[2] <= alive[0]


# memory that must not grow


def test_the_memory_of_an_evaluation_does_not_grow_with_its_examples(backbone):
    """As many tensors are alive in the last batch of 40 examples as in that of 10."""
    accelerator = make_accelerator(TrainSettings(precision="no"), backbone, ".")
    most = {}
    for count in (10, 40):
        seen = []

        class Watching(CausalLMLoss):
            def sum(self, model, batch):
                summed = super().sum(model, batch)
                seen.append(sum(1 for each in gc.get_objects() if type(each) is torch.Tensor))  # noqa: B023
                return summed

        evaluate(
            backbone,
            ragged_examples(count),
            PadRight(2),
            accelerator,
            batch_size=2,
            loss=Watching(),
        )
        assert len(seen) == count // 2
        most[count] = seen[-1] - seen[0]
    assert most[40] == most[10] <= 2


def test_a_checkpoint_of_a_large_backbone_is_four_times_the_trained_weights(llama_dir, tmp_path):
    """The weights as the loop needs them, two moments, the adapter for others: nothing of the
    backbone.
    """
    settings = TrainSettings(batch_size=8, max_steps=1, precision="no")
    model = peftkit.attach(
        peftkit.load_backbone(llama_dir, dtype=torch.float32), peftkit.LoraConfig(r=2)
    )
    Training(
        model,
        ragged_examples(),
        PadRight(2),
        settings,
        tmp_path,
        make_accelerator(settings, model, tmp_path),
    ).run()
    bytes_ = [
        sum(p.numel() * p.element_size() for p in each)
        for each in (trained(model).values(), model.parameters())
    ]
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    size = sum(
        path.stat().st_size
        for path in checkpoint.rglob("*.safetensors")
        if "random" not in path.name
    )
    names = 400 * 4 * len(trained(model))  # what a header says of a tensor
    assert 4 * bytes_[0] <= size <= 4 * bytes_[0] + names
    assert bytes_[1] > 5 * bytes_[0]


def test_two_runs_write_the_same_metrics_but_for_seconds_and_memory(llama_dir, tmp_path):
    texts = []
    for run in ("a", "b"):
        train(
            tmp_path / run,
            llama_dir,
            {"batch_size": 4, "evaluate_every": 2},
            evaluation=ragged_examples(5),
        )
        lines = read_metrics(tmp_path / run / "metrics.jsonl")
        texts.append(
            [
                json.dumps({k: v for k, v in line.items() if k not in ("seconds", "memory_gib")})
                for line in lines
            ]
        )
        assert all(line["memory_gib"] > 0 for line in lines if line["kind"] == "train")
    assert texts[0] == texts[1]
    weights = [
        read_tensors(tmp_path / run / "checkpoints" / "step-000006" / "trainable.safetensors")
        for run in "ab"
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
