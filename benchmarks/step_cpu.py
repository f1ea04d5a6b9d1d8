"""The rows of `step.py` on a CPU: each arm has its own process, and they take their steps in turn.

So ratios are of steps that follow each other, and each arm has its allocator to itself: that of
peftkit's loop keeps the memory that is freed, and nobody else's does, as long as `one_allocator`
does not give it to all.
"""

import contextlib
import itertools
import multiprocessing
import tempfile
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file

from benchmarks.step_arms import ARMS, loss_of, prepared, running, why_not
from benchmarks.step_backbones import smollm2, text_batches
from benchmarks.step_measures import (
    adapter_bytes,
    bytes_of,
    floor_per_token_and_block,
    live_bytes,
    saved_per_token_and_block,
    timed_step,
    weights_of,
)
from peftkit.runs.process import keep_freed_memory

ROWS = {
    f"{storage or 'bf16'} {rows}x{tokens}": (storage, rows, tokens)
    for storage in (None, "nf4")
    for rows, tokens in ((4, 256), (1, 2048))
}
RATE = 2e-4


def cpu_row(name, arms, repeats, *, one_allocator=False):
    """Measure each arm on SmolLM2-135M; a list of results."""
    found = {arm: {"row": name, "arm": arm} for arm in arms}
    context, alive = multiprocessing.get_context("spawn"), {}
    with tempfile.TemporaryDirectory() as directory:
        first = Path(directory, "first.safetensors")
        _save_first_adapter(name, first)
        for arm, about in found.items():
            if reason := why_not(arm, ROWS[name][0]):
                about["not_run"] = reason
                continue
            alive[arm], theirs = context.Pipe()
            keeps = one_allocator or ARMS[arm].loop
            context.Process(
                target=_live, args=(theirs, name, arm, first, keeps, repeats + 1), daemon=True
            ).start()
            theirs.close()
            about |= _told(alive[arm], arm) | {"seconds": [], "losses": []}
    for number in range(repeats + 1):
        turn = list(alive)[number % len(alive) :] + list(alive)[: number % len(alive)]
        for arm in turn:
            with contextlib.suppress(BrokenPipeError):
                alive[arm].send(number)
            loss, seconds = _told(alive[arm], arm)
            found[arm]["losses"].append(loss)
            if number:  # the first is to warm up
                found[arm]["seconds"].append(seconds)
                print(f"{name} {arm}: {seconds:.3f} s, loss {loss:.5f}", flush=True)
    return list(found.values())


def _save_first_adapter(row, path):
    model = prepared(ARMS["f"], smollm2(ROWS[row][0]))
    torch.manual_seed(0)
    tensors = peft.get_peft_model_state_dict(model)
    save_file(
        {
            name: torch.randn_like(each) * 0.02 * ("lora_A" in name)
            for name, each in tensors.items()
        },
        path,
    )


def _told(connection, arm):
    """What an arm tells next."""
    try:
        return connection.recv()
    except EOFError:
        raise SystemExit(
            f"arm {arm} has died; if it was for want of memory, name fewer --arms"
        ) from None


def _live(connection, row, arm, first, keeps_freed_memory, steps):
    """The life of an arm: it says once what it holds, and then takes a step whenever it is asked.

    It answers each time with the loss and the seconds.
    """
    if keeps_freed_memory:
        keep_freed_memory()
    storage, rows, tokens = ROWS[row]
    batches = list(itertools.islice(text_batches(rows, tokens), steps))
    model = prepared(ARMS[arm], smollm2(storage), load_file(first))
    with running(ARMS[arm], model):
        loss_of(
            ARMS[arm], model, batches[0]
        )  # what is found out at the first step, is found out here
        about = {"weights": bytes_of(weights_of(model)), "adapters": adapter_bytes(model)}
        about |= live_bytes(ARMS[arm], model, batches[0])
        about["saved_per_token_and_block"] = saved_per_token_and_block(ARMS[arm], model, batches[0])
        about["floor"] = floor_per_token_and_block(model.config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
        connection.send(about)
        for batch in batches:
            connection.recv()
            connection.send(timed_step(ARMS[arm], model, optimizer, batch))
