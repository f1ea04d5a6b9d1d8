"""kill -9 at any moment: the run goes on from its last whole checkpoint, and nothing on disk is
half-written.
"""

import json
import multiprocessing
import random
import signal
import time

import pytest
import torch

import peftkit
from peftkit.files import read_json, read_tensors
from peftkit.training.metrics_log import read_metrics
from tests.training.job import main, train, trained

SETTINGS = {"batch_size": 2, "epochs": 90, "save_every": 3}
KILLS = 20


def wait_for_training(path, before_ns, deadline_s=60):
    """Wait until a run has rewritten its metrics, which it does when it has resumed."""
    deadline = time.monotonic() + deadline_s
    while not path.exists() or path.stat().st_mtime_ns == before_ns:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_directory(run_dir, model_dir):
    """Every checkpoint that counts is whole in all its parts, and its adapter loads."""
    for path in (run_dir / "checkpoints").glob("step-*"):
        if (path / "manifest.json").exists():
            for tensors in path.rglob("*.safetensors"):
                read_tensors(tensors)
            assert read_json(path / "state.json")["step"] == int(path.name.removeprefix("step-"))
            peftkit.load(peftkit.load_backbone(model_dir, dtype=torch.float32), path / "adapter")
    steps = [entry["step"] for entry in read_metrics(run_dir / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_run_survives_twenty_kills_and_ends_where_an_unkilled_one_ends(llama_dir, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.job"])
    run_dir, chance, reached = tmp_path / "killed", random.Random(0), []
    for _ in range(KILLS):
        metrics = run_dir / "metrics.jsonl"
        before_ns = metrics.stat().st_mtime_ns if metrics.exists() else 0
        process = context.Process(target=main, args=(str(run_dir), str(llama_dir), SETTINGS))
        process.start()
        wait_for_training(metrics, before_ns)
        time.sleep(chance.uniform(0.0, 0.8))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it had not come to its end
        check_directory(run_dir, llama_dir)
        reached.append(len(read_metrics(metrics)))
    assert len(set(reached)) > KILLS / 2  # most kills came in the middle of work
    torch.set_num_threads(1)
    resumed, outcome = train(run_dir, llama_dir, SETTINGS)
    whole, _ = train(tmp_path / "whole", llama_dir, SETTINGS)
    assert outcome.step == outcome.total_steps == 990
    assert all(torch.equal(value, trained(resumed)[name]) for name, value in trained(whole).items())
    curves = [
        [
            json.dumps({k: v for k, v in line.items() if k not in ("seconds", "memory_gib")})
            for line in read_metrics(directory / "metrics.jsonl")
        ]
        for directory in (run_dir, tmp_path / "whole")
    ]
    assert curves[0] == curves[1]
