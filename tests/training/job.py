"""A small training job: run in this process, in a forked one, or as a script under `accelerate
launch`.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState

import peftkit
from peftkit.config.train import TrainSettings
from peftkit.data.padding import PadRight
from peftkit.data.supervised_tokens import Example
from peftkit.labels import IGNORED
from peftkit.runs.cpu_processes import start_requested_processes
from peftkit.runs.directory import Run
from peftkit.training.accelerator import make_accelerator
from peftkit.training.callbacks import Callback
from peftkit.training.loop import Training

ADAPTERS = {
    "prefix": peftkit.PrefixConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
    ),
    "bottleneck": peftkit.BottleneckConfig(
        placement="scaled_parallel", scale="learned", reduction_factor=4
    ),
}


def ragged_examples(count=22, seed=0, vocabulary=12):
    """Examples of 6 to 30 tokens of which a random share is supervised."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(6, 31, (), generator=generator))
        ids = torch.randint(4, vocabulary, (length,), generator=generator).tolist()
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        examples.append(Example(ids, [IGNORED] * prompt + ids[prompt:]))
    return examples


def weighted(examples, weights):
    """The first examples with a weight of their own each."""
    found = list(examples)
    for number, weight in enumerate(weights):
        found[number] = dataclasses.replace(found[number], weight=weight)
    return found


def train(
    run_dir,
    model_dir,
    settings,
    *,
    quantization=None,
    dtype="float32",
    dropout=0.1,
    adapter=None,
    weights=(),
    examples=None,
    **options,
):
    """Train LoRA, or another adapter, on a tiny model; return the model and the outcome.

    `options` are those of `Training`.
    """
    torch.manual_seed(0)
    backbone = peftkit.load_backbone(
        model_dir, quantization=quantization, dtype=getattr(torch, dtype)
    )
    model = peftkit.attach(backbone, adapter or peftkit.LoraConfig(r=4, lora_dropout=dropout))
    settings = TrainSettings(**({"learning_rate": 1e-2, "precision": "no"} | settings))
    accelerator = make_accelerator(settings, model, Path(run_dir))
    if examples is None:
        examples = weighted(ragged_examples(), weights)
    training = Training(
        model, examples, PadRight(2), settings, Path(run_dir), accelerator, **options
    )
    return model, training.run()


def trained(model):
    """The trained parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def main(
    run_dir,
    model_dir,
    settings,
    slow=False,
    adalora=None,
    method=None,
    evaluate=0,
    crash_at=None,
    saves=False,
    worsening=False,
    **options,
):
    """Train as a recipe does, with the signal handling of one; `saves` also saves the adapter as a
    recipe does.
    """
    start_requested_processes()
    torch.set_num_threads(1)
    adapter = peftkit.AdaLoraConfig(**adalora) if adalora else ADAPTERS[method] if method else None
    options |= {
        "callbacks": [Disturbance(slow, crash_at, worsening)],
        "adapter": adapter,
        "evaluation": ragged_examples(evaluate, seed=3),
    }
    model, outcome = train(run_dir, model_dir, settings, **options)
    config = SimpleNamespace(run_dir=run_dir, train=TrainSettings(**settings))
    Run(config).exit_if_interrupted(outcome)
    if saves:
        if PartialState().is_main_process:
            peftkit.save(model, Path(run_dir) / "adapter")
        _check_backbone(peftkit.detach(model), model_dir, **options)
    return model


def _check_backbone(backbone, model_dir, quantization=None, dtype="float32", **options):
    """Check that what is left without the adapter computes what the backbone computed before."""
    fresh = peftkit.load_backbone(model_dir, quantization=quantization, dtype=getattr(torch, dtype))
    found, expected = (
        each.eval()(input_ids=torch.arange(4, 12)[None]).logits for each in (backbone, fresh)
    )
    assert torch.equal(found, expected)


class Disturbance(Callback):
    """Slows a run down, ends it, or measures an accuracy that falls (on other processes: rises)."""

    def __init__(self, slow=False, crash_at=None, worsening=False):
        self.slow, self.crash_at, self.worsening = slow, crash_at, worsening
        self.evaluations = 0

    def after_optimizer_step(self, state):
        if self.slow:
            time.sleep(0.1)
        if state.step == self.crash_at:
            raise RuntimeError("crashed as it was told to")

    def measure(self, state):
        self.evaluations += 1
        if not self.worsening:
            return {}
        is_main = PartialState().is_main_process
        return {"accuracy": 1 / self.evaluations if is_main else float(self.evaluations)}


def own_port():
    """Return a port for the processes of one test, another one in each process of pytest."""
    return str(29500 + os.getpid() % 400)


def launch(flags, arguments, *, module="accelerate.commands.launch", **variables):
    """Run `main` under `accelerate launch`, with further environment variables; return the ended
    process.
    """
    command = [sys.executable, "-m", module, *flags, __file__, json.dumps(arguments)]
    environment = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def launch_two(arguments, **variables):
    """Run `main` on two processes: what `accelerate launch --cpu --num_processes 2` comes down to,
    without its imports.
    """
    flags = ["--nproc_per_node", "2", "--master_port", own_port()]
    variables |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return launch(flags, arguments, module="torch.distributed.run", **variables)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
