"""An optimizer, a schedule, an order and callbacks of the user's own, and resuming with them."""

import json

import bitsandbytes
import pytest
import torch

import peftkit
from peftkit.errors import CheckpointError, ConfigError
from peftkit.files import read_json
from peftkit.training.callbacks import Callback
from peftkit.training.json_and_tensors import join_state, split_state
from peftkit.training.metrics_log import read_metrics
from peftkit.training.order import Order
from tests.training.job import ragged_examples, train, trained
from tests.training.test_loop import CrashAt, CrashError

SETTINGS = {"batch_size": 4, "epochs": 2, "save_every": 2, "evaluate_every": 5}


class Recorder(Callback):
    """Writes every event down."""

    def __init__(self):
        self.events = []

    def on_train_start(self, state):
        self.events.append(("start", state.step, state.total_steps))

    def before_optimizer_step(self, state):
        self.before = {name: p.clone() for name, p in state.trained_parameters().items()}
        self.events.append(("before", state.step))

    def after_optimizer_step(self, state):
        parameters = state.trained_parameters()
        has_gradient = all(parameter.grad is not None for parameter in parameters.values())
        has_changed = any(not torch.equal(p, self.before[name]) for name, p in parameters.items())
        self.events.append(("after", state.step, has_gradient and has_changed))

    def on_step_end(self, state, metrics):
        self.events.append(("step", state.step, sorted(metrics)))

    def measure(self, state):
        self.events.append(("measure", state.step, state.model.training))
        return {"answer": 42.0}

    def on_evaluation(self, state, metrics):
        self.events.append(("evaluation", state.step, sorted(metrics)))

    def on_checkpoint(self, state, path):
        self.events.append(("checkpoint", state.step, path.name, (path / "manifest.json").exists()))

    def on_train_end(self, state, outcome):
        self.events.append(("end", outcome.step))


class WeightAverage(Callback):
    """An exponential average of the trained weights, with a counter under a number as its key."""

    def __init__(self):
        self.average, self.seen = {}, {1: 0}

    def after_optimizer_step(self, state):
        self.seen[1] += 1
        for name, parameter in state.trained_parameters().items():
            value = parameter.detach().clone()
            self.average[name] = self.average.get(name, value).lerp(value, 0.1)

    def state_dict(self):
        return {"average": self.average, "seen": self.seen}

    def load_state_dict(self, state):
        self.average, self.seen = state["average"], state["seen"]


def sgd(model):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def milestones(optimizer, total_steps):
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, total_steps - 2], gamma=0.1)


def backwards(epoch):
    return range(21, -1, -1)


def test_the_callbacks_events_come_in_order_with_the_state_of_the_training(llama_dir, tmp_path):
    recorder = Recorder()
    settings = {"batch_size": 8, "max_steps": 2, "evaluate_every": 2}
    train(tmp_path, llama_dir, settings, callbacks=[recorder], evaluation=ragged_examples(3))
    step_metrics = ["gradient_norm", "items", "learning_rate", "loss"]
    assert recorder.events == [
        ("start", 0, 2),
        ("before", 0),
        ("after", 1, True),
        ("step", 1, step_metrics),
        ("before", 1),
        ("after", 2, True),
        ("step", 2, step_metrics),
        ("measure", 2, True),
        ("evaluation", 2, ["answer", "loss", "perplexity"]),
        ("checkpoint", 2, "step-000002", True),
        ("end", 2),
    ]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["answer"] == 42.0


def test_a_users_optimizer_and_schedule_make_the_steps(llama_dir, tmp_path):
    run = {"batch_size": 8, "epochs": 3, "clip_norm": None}
    train(tmp_path, llama_dir, run, optimizer=sgd, scheduler=milestones, dropout=0.0)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05, 0.005, 0.005])
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_users_optimizer_follows_the_schedule_of_the_settings(llama_dir, tmp_path):
    run = {"batch_size": 8, "epochs": 1, "schedule": "linear", "warmup": 1}
    train(tmp_path, llama_dir, run, optimizer=sgd)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([0.0, 0.5, 0.25])


def test_a_users_order_is_taken_as_it_is():
    order = Order([5] * 22, 4, 2, 1, seed=0, group_by_length=True, of_epoch=backwards)
    found = [order.micro_batches(step, 0) for step in range(order.steps_per_epoch)]
    assert found == [
        [[21, 20, 19, 18], [17, 16, 15, 14]],
        [[13, 12, 11, 10], [9, 8, 7, 6]],
        [[5, 4, 3, 2], [1, 0]],
    ]
    twice = Order([5] * 3, 2, 1, 1, 0, False, of_epoch=lambda epoch: [epoch, 2, 2])
    assert twice.micro_batches(2, 0) == [[1, 2]]


def first_steps_of_two_epochs(of_epoch):
    order = Order([5] * 3, 1, 1, 1, 0, False, of_epoch)
    return [order.micro_batches(step, 0) for step in (0, order.steps_per_epoch)]


@pytest.mark.parametrize(
    ("of_epoch", "message"),
    [
        (lambda epoch: [], "it must name one at least"),
        (lambda epoch: [0, 1, 3], "names examples from 0 to 3; there are those from 0 to 2"),
        (lambda epoch: [0] * (epoch + 1), "epoch 1 has 2 examples, and that of epoch 0 had 1"),
    ],
)
def test_an_order_that_does_not_fit_the_examples_is_refused(of_epoch, message):
    with pytest.raises(ConfigError, match=message):
        first_steps_of_two_epochs(of_epoch)


def adamw_8bit(model):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2, min_8bit_size=16)


@pytest.mark.parametrize("optimizer", [sgd, adamw_8bit])
def test_a_run_with_a_users_parts_resumes_bit_for_bit(llama_dir, tmp_path, optimizer):
    parts = {
        "optimizer": optimizer,
        "scheduler": milestones,
        "order": backwards,
        "evaluation": ragged_examples(3),
    }
    averages = {name: WeightAverage() for name in ("whole", "cut", "resumed")}
    whole, outcome = train(
        tmp_path / "whole", llama_dir, SETTINGS, callbacks=[averages["whole"]], **parts
    )
    assert outcome.total_steps == 12
    callbacks = [CrashAt(8), averages["cut"]]
    with pytest.raises(CrashError):
        train(tmp_path / "cut", llama_dir, SETTINGS, callbacks=callbacks, **parts)
    resumed, again = train(
        tmp_path / "cut", llama_dir, SETTINGS, callbacks=[Recorder(), averages["resumed"]], **parts
    )
    assert read_json(again.checkpoint / "state.json")["progress"]["best_step"] == outcome.best_step
    found = trained(resumed)
    for name, value in trained(whole).items():
        assert torch.equal(value, found[name]), name
        average = averages["resumed"].average[name]
        assert torch.equal(averages["whole"].average[name], average), name
    assert averages["resumed"].seen == {1: 12}
    curves = []
    for run in ("whole", "cut"):
        lines = read_metrics(tmp_path / run / "metrics.jsonl")
        curves.append([(line["step"], line["loss"]) for line in lines if line["kind"] == "train"])
    assert curves[0] == curves[1]


def test_a_checkpoint_is_not_resumed_without_the_callbacks_whose_state_it_holds(
    llama_dir, tmp_path
):
    settings = {"batch_size": 8, "max_steps": 1}
    train(tmp_path, llama_dir, settings, callbacks=[WeightAverage()])
    with pytest.raises(
        CheckpointError, match=r"callbacks \['WeightAverage'\], and this .* has \[\]"
    ):
        train(tmp_path, llama_dir, settings)


def test_nested_state_comes_back_with_its_types():
    state = {
        0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999), "none": None},
        "a.b": torch.tensor([1, 2], dtype=torch.uint8),
        "a": {"b": torch.tensor(True), "$tensor": "no tensor"},
        "list": [1, "one", True, 1.5, []],
    }
    state["again"] = state["a.b"]
    value, tensors = split_state(state, "optimizer")
    found = join_state(json.loads(json.dumps(value)), tensors)
    assert found["again"] is found["a.b"]
    assert found.keys() == state.keys()
    assert found[0]["betas"] == (0.9, 0.999)
    assert (found["list"], found[0]["none"]) == (state["list"], None)
    assert torch.equal(found[0]["step"], torch.tensor(3.0))
    assert torch.equal(found["a.b"], state["a.b"])
    assert torch.equal(found["a"]["b"], torch.tensor(True))
    assert found["a"]["$tensor"] == "no tensor"
    with pytest.raises(CheckpointError, match=r"scheduler\.milestones is a set"):
        split_state({"milestones": {3}}, "scheduler")


def test_callbacks_and_an_optimizer_of_the_user_work_with_adalora(llama_dir, tmp_path):
    adapter = peftkit.AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=6)
    recorder = Recorder()
    _, outcome = train(
        tmp_path,
        llama_dir,
        {"batch_size": 8, "epochs": 2},
        adapter=adapter,
        optimizer=sgd,
        callbacks=[recorder],
    )
    assert recorder.events[-1] == ("end", outcome.step)
