"""Loss curves of PEFT's recipe with two seeds, of peftkit, and of PEFT without the up-cast.

See `step.py`.

A seed makes the order of the texts and the adapter's first weights. The held-out loss, on the same
texts for all, is what is compared: the losses of steps differ between seeds by the texts alone.
"""

import itertools
import time

import peft
import torch

from benchmarks.step_arms import ARMS, prepared, running
from benchmarks.step_backbones import smollm2, text_batches
from benchmarks.step_measures import train_step

ROWS, TOKENS, STORAGE = 4, 64, "nf4"
RUNS = (("a", 0), ("a", 1), ("f", 0), ("c", 0))
EVERY = 20
HELD_OUT = 16  # batches
RATE = 2e-4


def curves(steps):
    """Train them all; a list of results."""
    stream = text_batches(ROWS, TOKENS, seed=99, split="validation")
    held_out = list(itertools.islice(stream, HELD_OUT))
    return [_curve(arm, seed, steps, held_out) for arm, seed in RUNS]


def _curve(name, seed, steps, held_out):
    arm = ARMS[name]
    torch.manual_seed(seed)
    model = prepared(arm, smollm2(STORAGE))
    generator = torch.Generator().manual_seed(seed)
    first = peft.get_peft_model_state_dict(model)
    with torch.no_grad():
        for key, value in sorted(first.items()):  # the same of each library
            bound = value.shape[1] ** -0.5 if "lora_A" in key else 0.0
            value.copy_(torch.rand(value.shape, generator=generator) * 2 * bound - bound)
        peft.set_peft_model_state_dict(model, first)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses, held, started = [], [], time.monotonic()
    with running(arm, model):
        for step, batch in zip(range(steps + 1), text_batches(ROWS, TOKENS, seed), strict=False):
            if step % EVERY == 0 or step == steps:
                held.append([step, _held_out_loss(model, held_out)])
                print(
                    f"{name} seed {seed}, step {step}: held-out loss {held[-1][1]:.4f}", flush=True
                )
            if step < steps:
                losses.append(float(train_step(arm, model, optimizer, batch)))
    return {
        "arm": name,
        "seed": seed,
        "losses": losses,
        "held_out": held,
        "seconds": time.monotonic() - started,
    }


def _held_out_loss(model, batches):
    """The mean of the model's own loss; there is no dropout, so it stays in training mode."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [float(model(**batch, use_cache=False).loss) for batch in batches]
    return sum(found) / len(found)


def differences(runs):
    """How far the curves of two runs lie apart: held-out losses, and losses of steps."""
    pairs = {
        "two seeds of (a)": (0, 1),
        "peftkit and (a), one seed": (0, 2),
        "(c) and (a), one seed": (0, 3),
        "peftkit and (c), one seed": (3, 2),
    }
    found = {}
    for name, (one, other) in pairs.items():
        held = [
            abs(x[1] - y[1])
            for x, y in zip(runs[one]["held_out"], runs[other]["held_out"], strict=True)
            if x[0]
        ]
        steps = [
            abs(x - y) for x, y in zip(runs[one]["losses"], runs[other]["losses"], strict=True)
        ]
        found[name] = {
            "mean": sum(held) / len(held),
            "largest": max(held),
            "mean_of_steps": sum(steps) / len(steps),
        }
    return found
