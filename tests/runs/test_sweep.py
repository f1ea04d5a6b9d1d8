import os
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest
import yaml

from peftkit.cli import main
from peftkit.config.reading import build, load_yaml
from peftkit.errors import ConfigError, PeftkitError
from peftkit.runs.recipe import RecipeSettings
from peftkit.runs.sweep.process import last_error
from peftkit.runs.sweep.search import SweepSettings, sweep
from peftkit.runs.sweep.space import read_space

# A recipe in little: it writes what a run leaves behind, and goes on where it was stopped.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
options = dict(zip((word[2:] for word in sys.argv[1::2]), sys.argv[2::2]))
value = lambda key, default: yaml.safe_load(options.get(key, default))
run = Path(value("run_dir", ""))
run.mkdir(parents=True, exist_ok=True)
stopped = []
signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
(run / "environment.json").write_text("{}")
with open(run.parent.parent / "started", "a") as file:
    file.write(run.name + "\\n")
rank, rate = value("adapter.r", "8"), float(value("train.learning_rate", "1e-3"))
if rank == 13:
    raise ValueError("an unlucky rank")
log = run / "metrics.jsonl"
done = log.read_text().count("evaluation") if log.exists() else 0
for step in range(done + 1, 5):
    loss = abs(rank - 8) + abs(rate - 1e-3) * 100 + 4 / step
    train = {"step": step, "kind": "train", "loss": loss, "seconds": 60.0 * step}
    held_out = {"step": step, "kind": "evaluation", "loss": loss, "accuracy": 1 / loss}
    with log.open("a") as file:
        file.write(json.dumps(train) + "\\n" + json.dumps(held_out) + "\\n")
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if stopped:
        sys.exit(130)
(run / "after.json").write_text(json.dumps({"metrics": {"loss": loss, "accuracy": 1 / loss}}))
if rank == 77:
    raise OSError("no space for the report")
"""


@pytest.fixture
def at(tmp_path):
    """A function that sweeps a space with the fake recipe in a directory."""
    (tmp_path / "fake.py").write_text(FAKE)
    base = {
        "model": {"source": "somewhere"},
        "data": {"train": "a.jsonl", "evaluation": "b.jsonl"},
        "train": {"evaluate_every": 1},
        "run_dir": "runs/one",
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))

    def run(space, **settings):
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
        command = [sys.executable, str(tmp_path / "fake.py")]
        return sweep(
            command,
            RecipeSettings,
            tmp_path / "base.yaml",
            tmp_path / "space.yaml",
            tmp_path / "out",
            SweepSettings(**settings),
        )

    run.path = tmp_path / "out"
    run.base = tmp_path / "base.yaml"
    return run


def started(at):
    return (at.path / "started").read_text().split()


def trials(at, metric="loss"):
    return optuna.load_study(study_name=metric, storage=f"sqlite:///{at.path / 'sweep.db'}").trials


def test_a_grid_sweep_runs_every_point_and_finds_the_best(at):
    report = at(
        {"adapter.r": [4, 8, 16], "train.schedule": ["linear", "cosine"]}, sampler="grid"
    ).read_text()
    assert len(set(started(at))) == len(started(at)) == 6
    best = load_yaml(at.path / "best.yaml")
    assert best["adapter"]["r"] == 8
    assert best["run_dir"] == str(at.path / "best")
    build(RecipeSettings, best, "best.yaml")
    rows = [line.split(" | ") for line in report.splitlines() if " | finished | " in line]
    values = [float(row[1]) for row in rows]
    assert len(rows) == 6
    assert values == sorted(values)
    assert "optimistic" in report
    assert "| 4.0 | trials/" in report  # minutes
    assert (at.path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_searches_ranges_and_a_second_call_continues_it(at):
    space = {
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "adapter.r": {"low": 2, "high": 15, "step": 4},
    }
    at(space, trials=4)
    assert len(started(at)) == len(trials(at)) == 4
    at(space, trials=4)
    assert len(started(at)) == 4
    at(space, trials=7, sampler="random")
    assert len(trials(at)) == 7
    assert all(trial.params["adapter.r"] in (2, 6, 10, 14) for trial in trials(at))
    assert len({trial.params["train.learning_rate"] for trial in trials(at)}) == 7


def test_a_sweep_does_not_train_the_same_settings_twice(at):
    at({"adapter.r": [4, 8]}, trials=6, sampler="random")
    assert sorted(started(at)) == sorted(set(started(at)))
    assert len(trials(at)) == 6


def test_a_sweep_records_a_failing_trial_and_runs_the_others(at, capsys):
    report = at({"adapter.r": [4, 13, 8]}, sampler="grid").read_text()
    assert "failed: ValueError: an unlucky rank" in report
    assert report.count("| finished |") == 2
    assert "failed: ValueError: an unlucky rank" in capsys.readouterr().err


def test_a_trial_that_fails_after_it_was_measured_counts_with_a_remark(at, capsys):
    report = at({"adapter.r": [77, 8]}, sampler="grid").read_text()
    assert "| finished: OSError: no space for the report |" in report
    assert (
        "its run ended after that with OSError: no space for the report" in capsys.readouterr().err
    )
    assert [trial.state.name for trial in trials(at)] == ["COMPLETE", "COMPLETE"]


def test_a_sweep_in_which_every_trial_fails_is_an_error(at):
    with pytest.raises(
        PeftkitError, match="every trial failed, the last with: ValueError: an unlucky rank"
    ):
        at({"adapter.r": [13]}, sampler="grid")


def test_a_sweep_for_another_metric_uses_the_runs_that_are_there(at):
    at({"adapter.r": [4, 8]}, sampler="grid")
    at({"adapter.r": [4, 8]}, sampler="grid", metric="accuracy")
    assert len(started(at)) == 2
    assert load_yaml(at.path / "best.yaml")["adapter"]["r"] == 8
    with pytest.raises(
        ConfigError, match=r"no metric 'acuracy'; it has loss, accuracy; did you mean 'accuracy'"
    ):
        at({"adapter.r": [4, 8]}, sampler="grid", metric="acuracy")
    with pytest.raises(ConfigError, match="holds a search that is to minimize loss"):
        at({"adapter.r": [4, 8]}, sampler="grid", direction="maximize")


def test_a_trial_that_falls_behind_is_stopped_early(at, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.4")
    report = at({"adapter.r": [8, 9, 7, 10, 6, 64]}, sampler="grid", pruner="median").read_text()
    assert "| stopped early |" in report
    assert trials(at)[5].state.name == "PRUNED"
    assert len(trials(at)[5].intermediate_values) < 4
    name = trials(at)[5].user_attrs["directory"]
    assert not (at.path / "trials" / name / "after.json").exists()


def test_pruning_trials_needs_the_metric_in_their_evaluations(at, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.4")
    with pytest.raises(
        ConfigError, match=r"--pruner median needs rouge in the evaluations, which hold"
    ):
        at({"adapter.r": [8, 9]}, sampler="grid", pruner="median", metric="rouge")
    values = load_yaml(at.base)
    del values["train"]
    at.base.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"set train\.evaluate_every"):
        at({"adapter.r": [8, 9]}, pruner="median")


def interrupt_when(condition):
    """Send this process a Ctrl-C as soon as the condition holds."""

    def wait():
        while not condition():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_interrupted_sweep_saves_its_trial_and_resumes_it(at, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    waiter = interrupt_when(lambda: list(at.path.glob("trials/*/metrics.jsonl")))
    with pytest.raises(KeyboardInterrupt):
        at({"adapter.r": [4, 8]}, sampler="grid")
    waiter.join()
    name = started(at)[0]
    lines = (at.path / "trials" / name / "metrics.jsonl").read_text().splitlines()
    assert 2 <= len(lines) < 8
    assert [trial.state.name for trial in trials(at)] == ["WAITING", "WAITING"]
    monkeypatch.setenv("FAKE_SECONDS", "0")
    at({"adapter.r": [4, 8]}, sampler="grid")
    assert [trial.state.name for trial in trials(at)] == ["COMPLETE", "COMPLETE"]
    assert len((at.path / "trials" / name / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_trial_that_a_crash_cut_off_is_run_again_unless_it_still_runs(at):
    at({"adapter.r": [4, 8, 16]}, sampler="grid", trials=1)
    study = optuna.load_study(study_name="loss", storage=f"sqlite:///{at.path / 'sweep.db'}")
    trial = study.ask()
    trial.suggest_categorical("adapter.r", ["4", "8", "16"])
    trial.set_user_attr("directory", "some-name")
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "trials/some-name"]
    )
    trial.set_user_attr("process", other.pid)
    try:
        with pytest.raises(ConfigError, match=rf"trial 1 of .* still runs, as process {other.pid}"):
            at({"adapter.r": [4, 8, 16]}, sampler="grid")
    finally:
        other.kill()
        other.wait()
    at({"adapter.r": [4, 8, 16]}, sampler="grid")
    assert [trial.state.name for trial in trials(at)] == ["COMPLETE"] * 3


def test_a_directory_holds_one_sweep(at):
    at({"adapter.r": [4, 8]}, trials=1)
    with pytest.raises(
        ConfigError, match="holds a sweep whose space differs; choose another --output"
    ):
        at({"adapter.r": [4, 16]}, trials=1)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"adapter.rr": [4]}, r"adapter\.rr: unknown key; did you mean 'r'"),
        ({"trian.learning_rate": [1e-3]}, r"trian: unknown key; did you mean 'train'"),
        (
            {"adapter.method": ["lora", "bottleneck"], "adapter.r": [4]},
            r"bottleneck does not have r \(lora\).*bottleneck, adapter\.r=4",
        ),
        (
            {"train.schedule": ["cosine", "cosin"]},
            r"input should be 'linear', 'cosine' or 'constant'",
        ),
        (
            {"adapter.lora_dropout": {"low": 0.0, "high": 1.0}},
            r"adapter\.lora_dropout: input should be less than 1",
        ),
        ({"adapter.r": {"low": 4, "hihg": 8}}, r"hihg: unknown key; did you mean 'high'"),
        ({"adapter.r": {"low": 8, "high": 4}}, "must be less than high, 4"),
        ({"adapter.r": {"low": 0, "high": 4, "log": True}}, "log needs a low above 0"),
        ({"adapter.r": 8}, "must be a list of values, or a range"),
        ({"adapter.r": []}, "must list different values"),
        ({"adapter.r": [4, 4]}, "must list different values"),
        ({"run_dir": ["a", "b"]}, "run_dir is set for each trial"),
        ({}, "names no key to try"),
    ],
)
def test_a_sweep_refuses_a_wrong_space_before_anything_runs(at, space, message):
    with pytest.raises(ConfigError, match=message):
        at(space)
    assert not at.path.exists()


def test_a_grid_sweep_needs_lists_and_every_sweep_needs_held_out_rows(at):
    with pytest.raises(ConfigError, match=r"adapter\.r has a range: write the values out"):
        at({"adapter.r": {"low": 4, "high": 8}}, sampler="grid")
    values = load_yaml(at.base)
    values["data"].pop("evaluation")
    values.pop("train")
    at.base.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"set data\.evaluation"):
        at({"adapter.r": [4, 8]})


def test_a_space_of_many_keys_is_checked_two_keys_at_a_time(at, tmp_path):
    space = {f"adapter.options.key{n}": [1, 2] for n in range(12)}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    assert len(list(read_space(tmp_path / "space.yaml").corners())) == 12 * 11 // 2 * 4


def test_swept_values_of_every_kind_reach_the_recipe_as_they_are(at, tmp_path):
    space = {
        "train.clip_norm": [None, 1.0],
        "adapter.target_modules": [["q_proj"], ["q_proj", "v_proj"], "all-linear"],
        "train.learning_rate": [1e-5, 2e-3],
    }
    at(space, sampler="grid", trials=12)
    configs = [load_yaml(at.path / "best.yaml")]
    assert configs[0]["adapter"]["target_modules"] in space["adapter.target_modules"]
    assert len(set(started(at))) == 12


def test_a_sweep_begins_no_trial_after_its_time_limit(at):
    with pytest.raises(PeftkitError, match="no trial was run"):
        at({"adapter.r": [4, 8, 16]}, sampler="grid", timeout=0.0)


def test_the_last_error_of_a_log_is_found(tmp_path):
    path = tmp_path / "log"
    assert last_error(path) == "it printed nothing"
    path.write_text(
        "step 1\nTraceback\ntorch.OutOfMemoryError: 8 GiB\nsubprocess.CalledProcessError: Command\n"
    )
    assert last_error(path) == "torch.OutOfMemoryError: 8 GiB"
    path.write_text("x.yaml: 1 error\n  adapter.rr: unknown key\n\n")
    assert last_error(path) == "adapter.rr: unknown key"


def test_peftkit_sweep_starts_recipes_with_accelerate(at, tmp_path, monkeypatch, capsys):
    seen = {}
    config = tmp_path / "a.yaml"
    config.write_text("seed: 1")

    def fake(command, kind, base, space, output, settings):
        seen.update(command=command, kind=kind, settings=settings)
        return output / "report.md"

    monkeypatch.setattr("peftkit.runs.sweep.search.sweep", fake)
    words = [
        "sweep",
        "chat",
        "--config",
        str(config),
        "--space",
        "b.yaml",
        "--output",
        "c",
        "--metric",
        "accuracy",
    ]
    assert main([*words, "--", "--cpu", "--num_processes", "2"]) == 0
    assert seen["command"][1:7] == [
        "-m",
        "peftkit.internals.accelerate_launch",
        "--quiet",
        "--cpu",
        "--num_processes",
        "2",
    ]
    assert seen["command"][7].endswith("recipes/chat.py")
    assert seen["kind"].__name__ == "Config"
    assert seen["settings"].metric == "accuracy"
    assert "peftkit train chat --config c/best.yaml" in capsys.readouterr().out
    assert main(["sweep", "chta", *words[2:]]) == 2
    assert "did you mean 'chat'" in capsys.readouterr().err
