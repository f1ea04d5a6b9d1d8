"""One training step of peftkit beside PEFT's recipe and TRL's defaults: time, memory, loss.

    # SmolLM2-135M on this CPU
    python -m benchmarks.step [--rows "nf4 1x2048" ...] [--arms a c f ...] [--repeats 7]
    # the shapes of Llama 3 on a GPU, and the same without a GPU
    python -m benchmarks.step --device cuda [--rows "8B nf4 b1" ...]
    python -m benchmarks.step --traced
    # loss curves on this CPU
    python -m benchmarks.step --curves [--steps 300]

Same weights, same first adapter, same batches in one run. TRL's arm needs TRL, which is no
dependency: ``python -m pip install --no-deps --target runs/trl trl==1.16.0``, and
``PYTHONPATH=runs/trl``. On a CPU all arms are alive at once and take their steps in turn
(`step_cpu.py`); memory is counted before that, by live storages, and above each arm's own weights.
On a GPU one arm follows the other, and memory is the allocator's. Results go to
``benchmarks/results/step-{cpu,cuda,traced,curves}.json`` and ``.md``.
"""

import argparse
import functools
import gc
import json
import math
import statistics
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.step_arms import ARMS, TRL_VERSION, prepared, running, why_not
from benchmarks.step_backbones import SHAPES, random_batches, random_llama
from benchmarks.step_cpu import ROWS as CPU_ROWS
from benchmarks.step_cpu import cpu_row
from benchmarks.step_curves import curves
from benchmarks.step_measures import adapter_bytes, bytes_of, timed_step, weights_of
from benchmarks.step_report import write_report
from benchmarks.step_traced import (
    BUDGETS,
    LENGTHS,
    LONGEST_ARMS,
    TRACED,
    TRACED_ARMS,
    longest_of,
    traced_rows,
)
from peftkit.runs.process import environment

# By the tokens of a step. With 2048 tokens, all arms together do not fit into 24 GiB.
CPU_ARMS = {
    1024: [arm for arm in ARMS if arm != "f-quarter"],
    2048: ["a", "c", "d", "f", "f-half", "f-three-quarters", "f-all"],
}


def cuda_row(name, arms, repeats, device):
    """Measure each arm on a Llama of random weights, one after the other; a list of results."""
    shape, storage, rows, tokens = TRACED[name]
    found = []
    for arm in arms:
        about = {
            "row": name,
            "model": shape,
            "storage": storage or "bf16",
            "arm": arm,
            "rows": rows,
            "tokens": tokens,
        }
        found.append(about)
        if reason := why_not(arm, storage):
            about["not_run"] = reason
        else:
            try:
                about |= _on_device(ARMS[arm], shape, storage, rows, tokens, repeats, device)
            except torch.OutOfMemoryError as problem:
                about["not_run"] = f"out of memory: {str(problem).splitlines()[0]}"
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(about), flush=True)
    return found


def _on_device(arm, shape, storage, rows, tokens, repeats, device):
    torch.manual_seed(0)
    model = prepared(arm, random_llama(shape, storage, device))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    batches = random_batches(rows, tokens, model.config.vocab_size, device)
    seconds, losses = [], []
    with running(arm, model):
        for number in range(repeats + 2):
            if number == 2 and device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            loss, taken = timed_step(arm, model, optimizer, next(batches))
            losses.append(loss)
            seconds += [taken] if number >= 2 else []
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    trained = adapter_bytes(model)
    weights = bytes_of(weights_of(model)) - trained
    return {
        "total": peak,
        "weights": weights,
        "adapters": trained,
        "seconds": seconds,
        "losses": losses,
        "tokens_per_second": rows * tokens / statistics.median(seconds),
    }


def cuda_longest(rows, arms, device):
    """The longest sequence at batch 1 in each budget, for each model and storage of `rows`."""
    found = []
    for shape, storage in dict.fromkeys(TRACED[row][:2] for row in rows):
        for arm in (arm for arm in arms if arm in LONGEST_ARMS and not why_not(arm, storage)):
            known = []
            for tokens in LENGTHS:
                try:
                    known.append(
                        (
                            tokens,
                            _on_device(ARMS[arm], shape, storage, 1, tokens, 1, device)["total"]
                            / 2**30,
                        )
                    )
                except torch.OutOfMemoryError:
                    break
                gc.collect()
                torch.cuda.empty_cache()
                if known[-1][1] > max(BUDGETS):
                    break
            fits = (
                {budget: longest_of(known, budget) for budget in BUDGETS}
                if known
                else dict.fromkeys(BUDGETS, 0)
            )
            found.append(
                {"model": shape, "storage": storage or "bf16", "arm": arm, "longest": fits}
            )
    return found


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--traced", action="store_true", help="trace the rows of a GPU, without one"
    )
    parser.add_argument(
        "--curves", action="store_true", help="loss curves of PEFT's recipe, twice, and of peftkit"
    )
    parser.add_argument(
        "--rows", nargs="+", help=f"of {', '.join(CPU_ROWS)}; on a GPU, of {', '.join(TRACED)}"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="see step_arms.py")
    parser.add_argument("--repeats", type=int, help="timed steps of each arm (7; on a GPU 3)")
    parser.add_argument("--steps", type=int, default=300, help="of each loss curve")
    parser.add_argument(
        "--skip-longest", action="store_true", help="not the longest sequences that fit"
    )
    parser.add_argument(
        "--small", action="store_true", help="a Llama of four small blocks in the place of Llama 3"
    )
    parser.add_argument("--output", type=Path, help="where the results go, without .json")
    parser.add_argument(
        "--one-allocator",
        action="store_true",
        help="on a CPU: all arms keep freed memory, as peftkit's loop does",
    )
    chosen = parser.parse_args()
    known = TRACED if chosen.traced or chosen.device == "cuda" or chosen.small else CPU_ROWS
    chosen.rows = chosen.rows or list(known)
    if unknown := [row for row in chosen.rows if row not in known]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(known)}")
    return chosen


def main():
    """Measure, print and write."""
    chosen = _arguments()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    if chosen.small:
        SHAPES.update({name: SHAPES["small"] for name in SHAPES})
    kind = next(
        (name for name in ("traced", "curves", "small") if vars(chosen)[name]), chosen.device
    )
    command = " ".join(
        ["python", "benchmarks/step.py", *(f'"{x}"' if " " in x else x for x in sys.argv[1:])]
    )
    about = {
        "command": command,
        "environment": environment(),
        "trl": TRL_VERSION,
        "finished": False,
    }
    output = chosen.output or Path(__file__).parent / "results" / f"step-{kind}"
    keep = functools.partial(write_report, output, kind, about)
    if chosen.traced:
        found = traced_rows(chosen.rows, chosen.arms or TRACED_ARMS, not chosen.skip_longest, keep)
    elif chosen.curves:
        found = curves(chosen.steps)
    elif kind == "cpu":
        found = []
        for row in chosen.rows:
            arms = chosen.arms or CPU_ARMS[math.prod(CPU_ROWS[row][1:])]
            found += cpu_row(row, arms, chosen.repeats or 7, one_allocator=chosen.one_allocator)
            keep(found)
    else:
        found = []
        for row in chosen.rows:
            found += cuda_row(row, chosen.arms or TRACED_ARMS, chosen.repeats or 3, chosen.device)
            keep(found)
        if kind == "cuda" and not chosen.skip_longest:
            found += cuda_longest(chosen.rows, chosen.arms or TRACED_ARMS, chosen.device)
    about["finished"] = True
    print(keep(found))


if __name__ == "__main__":
    main()
