import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.data.padding import PadRight
from peftkit.errors import CheckpointError, ConfigError, NonFiniteError
from peftkit.files import read_tensors
from peftkit.losses.base import CausalLMLoss, ModelLoss
from peftkit.training.accelerator import make_accelerator
from peftkit.training.callbacks import Callback
from peftkit.training.evaluation import evaluate
from peftkit.training.loop import Training
from peftkit.training.metrics_log import read_metrics
from peftkit.training.order import Order
from tests.conftest import llama_config
from tests.contract import METHODS
from tests.training import job
from tests.training.job import ragged_examples, train, trained


def losses(run_dir, kind="train"):
    return [
        entry["loss"] for entry in read_metrics(run_dir / "metrics.jsonl") if entry["kind"] == kind
    ]


# one step, however it is cut


def test_how_a_step_is_cut_into_micro_batches_does_not_matter(llama_dir, tmp_path):
    """1 x 8 = 8 x 1 = 2 x 4 on ragged batches, the short last step of an epoch included."""
    curves = {}
    for batch_size, accumulate in ((1, 8), (8, 1), (2, 4)):
        run_dir = tmp_path / f"{batch_size}x{accumulate}"
        cut = {"batch_size": batch_size, "accumulate": accumulate, "epochs": 2}
        train(run_dir, llama_dir, cut, dropout=0.0)
        curves[batch_size] = losses(run_dir)
    assert len(curves[1]) == 6
    assert curves[1] == pytest.approx(curves[8], rel=1e-5)
    assert curves[1] == pytest.approx(curves[2], rel=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_supervised_tokens(llama_dir, tmp_path):
    train(
        tmp_path, llama_dir, {"batch_size": 4, "accumulate": 6, "learning_rate": 1e-9}, dropout=0.0
    )
    torch.manual_seed(0)
    model = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    summed = [
        model(input_ids=torch.tensor([e.input_ids]), labels=torch.tensor([e.labels])).loss
        * e.supervised
        for e in ragged_examples()
    ]
    mean = float(sum(summed)) / sum(e.supervised for e in ragged_examples())
    assert losses(tmp_path) == pytest.approx([mean], rel=1e-5)


def test_a_process_for_which_nothing_is_left_takes_part_all_the_same():
    order = Order([5] * 9, 4, 1, 2, seed=0, group_by_length=False)
    assert [len(batch) for batch in order.micro_batches(1, 0)] == [1]
    assert order.micro_batches(1, 1) == [[]]


def test_the_order_is_a_function_of_seed_and_epoch_and_takes_every_example_once():
    lengths = [len(example.input_ids) for example in ragged_examples(50)]
    order = Order(lengths, 4, 2, 1, seed=3, group_by_length=True)
    steps = [
        [i for batch in order.micro_batches(step, 0) for i in batch]
        for step in range(2 * order.steps_per_epoch)
    ]
    first, second = steps[: order.steps_per_epoch], steps[order.steps_per_epoch :]
    assert (
        sorted(i for step in first for i in step)
        == sorted(i for step in second for i in step)
        == list(range(50))
    )
    assert first != second
    again = Order(lengths, 8, 1, 1, seed=3, group_by_length=True)
    assert [sorted(again.micro_batches(step, 0)[0]) for step in range(7)] == [
        sorted(step) for step in first
    ]
    shared = Order(lengths, 2, 2, 2, seed=3, group_by_length=True)
    for step in range(7):
        ranks = [shared.micro_batches(step, rank) for rank in (0, 1)]
        assert len(ranks[0]) == len(ranks[1])
        assert sorted(i for rank in ranks for batch in rank for i in batch) == sorted(first[step])


@pytest.mark.parametrize("group_by_length", [True, False])
def test_the_first_epoch_goes_from_short_to_long_and_later_ones_are_as_without(group_by_length):
    lengths = np.array([len(example.input_ids) for example in ragged_examples(50)])
    plain, sorted_first = (
        Order(lengths, 2, 2, 2, 3, group_by_length, shortest_first=first) for first in (False, True)
    )
    taken, numbers = [], []
    for step in range(plain.steps_per_epoch):
        for rank in (0, 1):
            for batch in sorted_first.micro_batches(step, rank):
                numbers += batch
                taken += [(step, lengths[number]) for number in batch]
    assert sorted(numbers) == list(range(50))
    longest = [max(length for step, length in taken if step == each) for each in range(7)]
    shortest = [min(length for step, length in taken if step == each) for each in range(7)]
    assert all(before <= after for before, after in zip(longest, shortest[1:], strict=False))
    for step in range(plain.steps_per_epoch, 3 * plain.steps_per_epoch):
        assert plain.micro_batches(step, 1) == sorted_first.micro_batches(step, 1)


def test_equally_long_examples_are_in_random_order_in_a_curriculum():
    first, second = (
        Order([5] * 40, 40, 1, 1, seed, True, shortest_first=True).micro_batches(0, 0)[0]
        for seed in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != list(range(40))


def test_a_curriculum_with_another_order_is_refused(llama_dir, tmp_path):
    settings = {"curriculum": "length", "max_steps": 1}
    with pytest.raises(ConfigError, match="an order of its own"):
        train(tmp_path, llama_dir, settings, order=lambda epoch: [0])


# schedules, precision, memory


@pytest.mark.parametrize(
    ("schedule", "end"), [("linear", 0.25), ("cosine", 0.1464), ("constant", 1.0)]
)
@pytest.mark.parametrize("warmup", [2, 0.34])
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(
    llama_dir, tmp_path, schedule, end, warmup
):
    train(
        tmp_path,
        llama_dir,
        {
            "batch_size": 8,
            "epochs": 2,
            "schedule": schedule,
            "warmup": warmup,
            "learning_rate": 1e-3,
        },
    )
    rates = [entry["learning_rate"] / 1e-3 for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates[:3] == pytest.approx([0, 0.5, 1.0])
    assert rates[-1] == pytest.approx(end, abs=1e-3)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precisions_and_quantised_backbones_learn(llama_dir, tmp_path, quantization, precision):
    settings = {"batch_size": 8, "epochs": 16, "precision": precision, "learning_rate": 3e-2}
    model, _ = train(tmp_path, llama_dir, settings, quantization=quantization, dtype="bfloat16")
    curve = losses(tmp_path)
    assert sum(curve[-3:]) < 0.95 * sum(
        curve[:3]
    )  # 5.3 is the floor that the frozen random head sets
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_under_autocast_on_a_16_bit_backbone(llama_dir, tmp_path, method):
    settings = {"batch_size": 8, "epochs": 8, "precision": "auto", "learning_rate": 3e-2}
    model, _ = train(tmp_path, llama_dir, settings, dtype="bfloat16", adapter=METHODS[method]())
    curve = losses(tmp_path)
    assert sum(curve[-3:]) < 0.995 * sum(curve[:3])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_gradient_checkpointing_changes_nothing_but_memory(
    llama_dir, tmp_path, monkeypatch, quantization
):
    models, passes = {}, {False: 0, True: 0}
    original = LlamaAttention.forward

    def counted(self, *arguments, **options):
        passes[checkpointing] += 1
        return original(self, *arguments, **options)

    monkeypatch.setattr(LlamaAttention, "forward", counted)
    for checkpointing in (False, True):
        settings = {"batch_size": 8, "max_steps": 2, "gradient_checkpointing": checkpointing}
        models[checkpointing], _ = train(
            tmp_path / str(checkpointing),
            llama_dir,
            settings,
            quantization=quantization,
            dropout=0.3,
        )
    plain, recomputed = trained(models[False]), trained(models[True])
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)
    assert passes[True] == 2 * passes[False]


def test_clipping_bounds_the_gradient_but_not_what_is_logged(llama_dir, tmp_path, monkeypatch):
    applied = []
    original = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        applied.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for clip in (None, 1e-3):
        train(tmp_path / str(clip), llama_dir, {"batch_size": 8, "max_steps": 1, "clip_norm": clip})
    free, tight = (
        read_metrics(tmp_path / str(clip) / "metrics.jsonl")[0]["gradient_norm"]
        for clip in (None, 1e-3)
    )
    assert free == pytest.approx(tight)
    assert applied == pytest.approx([free, 1e-3], rel=1e-2)


# other models


def test_a_plain_model_is_trained_too(tmp_path):
    model = LlamaForCausalLM(llama_config())
    settings = TrainSettings(batch_size=8, epochs=6, learning_rate=1e-2, weight_decay=0.1)
    accelerator = make_accelerator(settings, model, tmp_path)
    Training(model, ragged_examples(), PadRight(2), settings, tmp_path, accelerator).run()
    curve = losses(tmp_path)
    assert curve[-1] < 0.7 * curve[0]
    assert not (tmp_path / "checkpoints" / "step-000018" / "adapter").exists()


def test_a_model_with_its_own_loss_gives_the_same_steps(llama_dir, tmp_path):
    curves = []
    for loss in (CausalLMLoss(), ModelLoss()):
        torch.manual_seed(0)
        model = peftkit.attach(
            peftkit.load_backbone(llama_dir, dtype=torch.float32), peftkit.LoraConfig(r=4)
        )
        run_dir = tmp_path / type(loss).__name__
        settings = TrainSettings(batch_size=1, epochs=0.3, precision="no")
        accelerator = make_accelerator(settings, model, run_dir)
        Training(
            model,
            ragged_examples(),
            PadRight(2),
            settings,
            run_dir,
            accelerator,
            loss=loss,
        ).run()
        curves.append(losses(run_dir))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_what_cannot_be_trained_is_refused(backbone, llama_dir, tmp_path):
    settings = TrainSettings(precision="no")
    accelerator = make_accelerator(settings, backbone, tmp_path)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        Training(backbone, ragged_examples(), PadRight(2), settings, tmp_path, accelerator).run()
    with pytest.raises(ConfigError, match="evaluate_every needs held-out rows"):
        train(tmp_path, llama_dir, {"evaluate_every": 1.0})


# evaluation


class Measured(Callback):
    """Adds metrics with given values to each evaluation."""

    def __init__(self, **values):
        self.values = {name: iter(each) for name, each in values.items()}

    def measure(self, state):
        return {name: next(each) for name, each in self.values.items()}


def test_evaluation_is_exact_whatever_the_batch_size(backbone):
    accelerator, examples = Accelerator(), ragged_examples(30, seed=1)
    model = backbone.float().train()
    found = [
        evaluate(model, examples, PadRight(2), accelerator, batch_size=size) for size in (1, 7, 30)
    ]
    assert model.training
    assert (
        found[0]["loss"]
        == pytest.approx(found[1]["loss"], rel=1e-6)
        == pytest.approx(found[2]["loss"], rel=1e-6)
    )
    assert found[0]["perplexity"] == pytest.approx(math.exp(found[0]["loss"]))


def test_the_best_evaluation_is_kept_and_early_stopping_stops(llama_dir, tmp_path):
    settings = {
        "batch_size": 8,
        "epochs": 20,
        "evaluate_every": 1.0,
        "early_stopping": 2,
        "learning_rate": 3e-2,
    }
    held_out = ragged_examples(10, seed=9)
    model, outcome = train(tmp_path, llama_dir, settings, evaluation=held_out)
    evaluations = losses(tmp_path, "evaluation")
    best = evaluations.index(min(evaluations))
    assert outcome.step < outcome.total_steps
    assert len(evaluations) == best + 3
    assert outcome.best_step == 3 * (best + 1)
    assert outcome.best_value == evaluations[best]
    again = evaluate(model, held_out, PadRight(2), Accelerator())
    assert again["loss"] == pytest.approx(outcome.best_value)
    steps = {f"step-{outcome.best_step:06d}", f"step-{outcome.step:06d}"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == steps


@pytest.mark.parametrize(
    ("best", "expected"), [("accuracy", 6), ("word_error_rate", 9), ("loss", None)]
)
def test_the_best_evaluation_is_that_of_the_metric_that_is_named(
    llama_dir, tmp_path, best, expected
):
    """An accuracy is better higher, an error rate lower; the first of equals stays, and what is no
    number is no best.
    """
    accuracies = [0.5, 0.9, 0.2, float("nan"), 0.9]
    error_rates = [0.5, 0.5, 0.1, float("nan"), 0.1]
    measured = Measured(accuracy=accuracies, word_error_rate=error_rates)
    settings = {"batch_size": 8, "epochs": 5, "evaluate_every": 1.0, "best": best}
    _, outcome = train(
        tmp_path, llama_dir, settings, callbacks=[measured], evaluation=ragged_examples(3)
    )
    curve = losses(tmp_path, "evaluation")
    assert outcome.best_step == (expected or 3 * (1 + curve.index(min(curve))))
    assert outcome.best_value == {"accuracy": 0.9, "word_error_rate": 0.1, "loss": min(curve)}[best]


def test_a_metric_that_the_evaluation_does_not_give_is_refused(llama_dir, tmp_path):
    settings = {"batch_size": 8, "evaluate_every": 1.0, "best": "acuracy"}
    measured = Measured(accuracy=[1.0])
    with pytest.raises(
        ConfigError, match=r"gives loss, perplexity, accuracy; did you mean 'accuracy'\?"
    ):
        train(tmp_path, llama_dir, settings, callbacks=[measured], evaluation=ragged_examples(3))


def test_only_a_language_model_has_a_perplexity(backbone):
    given = (backbone.float(), ragged_examples(3), PadRight(2), Accelerator())
    assert evaluate(*given, loss=ModelLoss()).keys() == {"loss"}
    assert evaluate(*given).keys() == {"loss", "perplexity"}


def test_the_ranks_of_adalora_are_logged_where_they_change(llama_dir, tmp_path):
    adapter = peftkit.AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=4, deltaT=2, total_step=12
    )
    train(tmp_path, llama_dir, {"batch_size": 8, "epochs": 4}, adapter=adapter)
    entries = [
        entry for entry in read_metrics(tmp_path / "metrics.jsonl") if entry["kind"] == "ranks"
    ]
    totals = [sum(entry["ranks"].values()) for entry in entries]
    layers = len(entries[0]["ranks"])
    assert [entry["step"] for entry in entries] == [4, 6, 8]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == 2 * layers
    assert totals[0] < 4 * layers


def test_a_fraction_of_an_epoch_and_a_number_of_steps_are_intervals(llama_dir, tmp_path):
    for every, expected in ((0.5, [6, 12, 18, 22]), (7, [7, 14, 21, 22])):
        run_dir = tmp_path / str(every)
        train(
            run_dir,
            llama_dir,
            {"batch_size": 2, "epochs": 2, "evaluate_every": every},
            evaluation=ragged_examples(3),
        )
        metrics = read_metrics(run_dir / "metrics.jsonl")
        assert [entry["step"] for entry in metrics if entry["kind"] == "evaluation"] == expected


# going on


class CrashError(Exception):
    pass


class CrashAt(Callback):
    """Ends the run after a step's update, before anything is saved."""

    def __init__(self, step):
        self.step = step

    def after_optimizer_step(self, state):
        if state.step == self.step:
            raise CrashError


ADAPTERS = {
    "lora": peftkit.LoraConfig(r=4, lora_dropout=0.3),
    "bottleneck": peftkit.BottleneckConfig(
        placement="scaled_parallel", scale="learned", dropout=0.3
    ),
    "prefix": peftkit.PrefixConfig(
        num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=8, prefix_dropout=0.3
    ),
}


@pytest.mark.parametrize(
    ("method", "quantization"),
    [
        ("lora", None),
        ("lora", "nf4"),
        ("bottleneck", None),
        ("bottleneck", "int8"),
        ("prefix", None),
        ("prefix", "nf4"),
    ],
)
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(
    llama_dir, tmp_path, method, quantization
):
    """Parameters, optimiser, schedule, data order and dropout, from the middle of an epoch."""
    settings = {
        "batch_size": 2,
        "accumulate": 2,
        "epochs": 3,
        "save_every": 4,
        "evaluate_every": 6,
        "weight_decay": 0.1,
    }
    options = {
        "quantization": quantization,
        "adapter": ADAPTERS[method],
        "evaluation": ragged_examples(5, seed=2),
    }
    whole, outcome = train(tmp_path / "whole", llama_dir, settings, **options)
    for step in (7, 15):
        with pytest.raises(CrashError):
            train(tmp_path / "cut", llama_dir, settings, callbacks=[CrashAt(step)], **options)
    torch.rand(100)
    resumed, again = train(tmp_path / "cut", llama_dir, settings, **options)
    expected, found = trained(whole), trained(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timeless = [
        [
            {k: v for k, v in entry.items() if k not in ("seconds", "memory_gib")}
            for entry in read_metrics(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]
    assert (again.step, again.best_step, again.best_value) == (
        outcome.step,
        outcome.best_step,
        outcome.best_value,
    )
    moments = [read_tensors(each.checkpoint / "optimizer.safetensors") for each in (outcome, again)]
    assert all(torch.equal(value, moments[1][name]) for name, value in moments[0].items())


def test_a_run_that_is_resumed_within_a_curriculum_ends_as_an_uninterrupted_one(
    llama_dir, tmp_path
):
    settings = {"batch_size": 2, "epochs": 2, "save_every": 4, "curriculum": "length"}
    whole, _ = train(tmp_path / "whole", llama_dir, settings)
    for step in (6, 13):  # 11 steps are an epoch
        with pytest.raises(CrashError):
            train(tmp_path / "cut", llama_dir, settings, callbacks=[CrashAt(step)])
    resumed, _ = train(tmp_path / "cut", llama_dir, settings)
    found = trained(resumed)
    assert all(torch.equal(value, found[name]) for name, value in trained(whole).items())


def test_two_runs_of_one_seed_are_the_same(llama_dir, tmp_path):
    for name in ("a", "b"):
        train(tmp_path / name, llama_dir, {"batch_size": 4})
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_finished_run_has_nothing_left_to_do(llama_dir, tmp_path):
    first, _ = train(tmp_path, llama_dir, {"batch_size": 8})
    again, outcome = train(tmp_path, llama_dir, {"batch_size": 8}, callbacks=[CrashAt(1)])
    assert outcome.step == outcome.total_steps
    assert all(torch.equal(value, trained(again)[name]) for name, value in trained(first).items())


def test_a_damaged_or_foreign_checkpoint_is_not_resumed(llama_dir, tmp_path):
    train(tmp_path, llama_dir, {"batch_size": 8, "save_every": 1})
    checkpoint = tmp_path / "checkpoints" / "step-000003"
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        train(tmp_path, llama_dir, {"resume": str(tmp_path / "nope")})
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        train(tmp_path, llama_dir, {"resume": str(checkpoint)})
    _, outcome = train(tmp_path, llama_dir, {"batch_size": 8})
    assert outcome.step == 3


def test_other_data_and_another_runs_best_are_told_apart(llama_dir, tmp_path, monkeypatch):
    settings = {"batch_size": 8, "evaluate_every": 1.5, "max_steps": 2, "learning_rate": 1e-9}
    held_out = ragged_examples(4, seed=5)
    _, first = train(tmp_path / "a", llama_dir, settings, evaluation=held_out)
    further = settings | {"max_steps": 3, "resume": str(first.checkpoint)}
    _, outcome = train(tmp_path / "b", llama_dir, further, evaluation=held_out)
    assert (outcome.step, outcome.best_step) == (3, 3)
    monkeypatch.setattr(job, "ragged_examples", lambda: ragged_examples(seed=1))
    with pytest.raises(CheckpointError, match="other training examples"):
        train(tmp_path / "a", llama_dir, settings, evaluation=held_out)


def test_a_checkpoint_holds_no_backbone(llama_dir, tmp_path):
    model, outcome = train(tmp_path, llama_dir, {"batch_size": 8})
    trained_bytes = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    size = sum(path.stat().st_size for path in outcome.checkpoint.rglob("*.safetensors"))
    assert size < 5 * trained_bytes  # weights twice, two moments, random states
    peftkit.load(peftkit.detach(model), outcome.checkpoint / "adapter")


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(
    llama_dir, tmp_path, monkeypatch
):
    train(tmp_path, llama_dir, {"batch_size": 8, "save_every": 1, "max_steps": 2})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    count = iter(range(100))
    original = CausalLMLoss.sum

    def failing(self, model, batch):
        return original(self, model, batch) * (float("nan") if next(count) == 0 else 1.0)

    monkeypatch.setattr(CausalLMLoss, "sum", failing)
    with pytest.raises(NonFiniteError, match="the loss is nan at step 3"):
        train(tmp_path, llama_dir, {"batch_size": 8, "save_every": 1, "max_steps": 5})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_gradient_that_is_not_finite_stops_the_run(llama_dir, tmp_path, monkeypatch):
    original = CausalLMLoss.sum

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    monkeypatch.setattr(CausalLMLoss, "sum", lambda self, m, b: Poison.apply(original(self, m, b)))
    with pytest.raises(NonFiniteError, match=r"gradient's norm is (nan|inf) at step 1"):
        train(tmp_path, llama_dir, {"batch_size": 8})


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(llama_dir, tmp_path, number):
    arguments = {
        "run_dir": str(tmp_path),
        "model_dir": str(llama_dir),
        "settings": {"batch_size": 1, "epochs": 3},
        "slow": True,
    }
    command = [sys.executable, job.__file__, json.dumps(arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() or len(losses(tmp_path)) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    done = len(losses(tmp_path))
    assert process.returncode == 128 + number
    assert f"interrupted at step {done} of 66" in stderr
    assert f"to resume: python {job.__file__}" in stderr
    whole, _ = train(tmp_path / "whole", llama_dir, {"batch_size": 1, "epochs": 3})
    resumed, _ = train(tmp_path, llama_dir, {"batch_size": 1, "epochs": 3})
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    for name, value in trained(whole).items():
        assert torch.allclose(value, trained(resumed)[name], atol=1e-3)


def test_a_second_signal_ends_the_program():
    from peftkit.training.interruption import Interruption

    inherited = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, inherited)
