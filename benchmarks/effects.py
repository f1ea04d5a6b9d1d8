"""What each capability of the recipes does on a small real task, one change at a time.

    python -m benchmarks.effects [--quick] [--workers 2] [--seeds 3] [--only NAME ...] [--run-dir
    runs/effects]

The task is `sample:films` (is a sentence of a film review positive?) with 600 labelled sentences,
the model all-MiniLM-L6-v2 with LoRA. Every variant is the text_classification recipe with another
config. The most informative runs come first; a finished run is a line in RUN_DIR/runs.jsonl and is
not run again, so the script can be stopped at any time. What is there at the end, or at once with
--report, is written to ``benchmarks/results/effects.json`` and ``.md``.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from accelerate.utils import set_seed

from benchmarks.effects_report import write_report
from benchmarks.effects_variants import (
    BOTH,
    COMBINED,
    LATE,
    PLAIN,
    RADII,
    RECIPE,
    SIZES,
    TAUGHT,
    TEACHER,
    TRAIN,
    VARIANTS,
    filled,
    merged,
    name_of,
)
from peftkit.adapters.combining import combine
from peftkit.config.reading import build
from peftkit.data.row_files import read_rows
from peftkit.errors import PeftkitError
from peftkit.files import write_rows
from peftkit.runs.directory import Run
from peftkit.runs.finetune import Finetuning
from peftkit.runs.opening import open_run
from peftkit.runs.prediction import predict
from peftkit.runs.process import prepare_process
from peftkit.runs.recipes import load_recipe, recipe_named


def write_data(directory, sizes):
    """Write the rows of every variant, the same for all seeds. No run reads the test rows."""
    directory.mkdir(parents=True, exist_ok=True)
    films, validation = list(read_rows("sample:films/train")), read_rows("sample:films/validation")
    draw = random.Random(0)
    draw.shuffle(films)
    train, rest = films[: sizes["train"]], films[sizes["train"] :]
    unlabelled = [{"text": row["text"]} for row in rest[: sizes["unlabelled"]]]
    products = [
        row
        for split in ("train", "validation", "test")
        for row in read_rows(f"sample:products/{split}")
    ]
    second = sizes["train"] + sizes["validation"]
    files = {
        "films": train,
        "validation": validation[: sizes["validation"]],
        "films_test": read_rows("sample:films/test")[: sizes["test"]],
        "unlabelled": unlabelled,
        "rare": with_rare(films, sizes["train"], sizes["rare_share"]),
        "rare_validation": with_rare(validation, 2 * sizes["validation"], sizes["rare_share"]),
        "products": products[: sizes["train"]],
        "products_validation": products[sizes["train"] : second],
        "products_test": products[second : second + sizes["test"]],
    }
    for name, rows in files.items():
        write_rows(directory / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in files.items()}


def with_rare(rows, count, share):
    """So many rows, of which a share is positive."""
    rare = round(count * share)
    positive = [row for row in rows if row["label"] == "positive"][:rare]
    return positive + [row for row in rows if row["label"] == "negative"][: count - rare]


def scores(task, rows, outputs, rare_share):
    """The task's metrics, the mean -log p of the label, and the confusion at two prevalences."""
    found = task.measure(rows, outputs)
    labels = found.confusion["labels"]
    right = [each[labels.index(row["label"])] for row, each in zip(rows, outputs, strict=True)]
    nll = -torch.tensor(right).clamp(min=1e-9).log().mean().item()
    return {
        **found.metrics,
        "nll": nll,
        "confusion": found.confusion["counts"],
        **as_rare(found.confusion, rare_share),
    }


def as_rare(confusion, share):
    """Recall, precision and macro F1 as if only a share of the rows were positive.

    Each class's row of the confusion matrix is weighted for that.
    """
    (right_negative, wrong_positive), (missed, right_positive) = confusion["counts"]
    negative = (1 - share) / max(1, right_negative + wrong_positive)
    positive = share / max(1, missed + right_positive)
    tn, fp, fn, tp = (
        right_negative * negative,
        wrong_positive * negative,
        missed * positive,
        right_positive * positive,
    )
    f1 = [2 * hit / max(1e-12, 2 * hit + fp + fn) for hit in (tp, tn)]
    return {"rare_recall": tp / share, "rare_f1": f1[0], "rare_macro_f1": sum(f1) / 2}


def tested(opened, run_dir, names, rare_share):
    """The scores of a finished run on test files, with its own threshold and without.

    Its probabilities are kept beside it.
    """
    found = {}
    for name in names:
        rows = opened.task.read(str(run_dir / "data" / f"{name}.jsonl"))
        outputs = predict([opened], rows, batch_size=64)
        (opened.directory / f"{name}.json").write_text(json.dumps(outputs))
        found[name] = scores(opened.task, rows, outputs, rare_share)
        threshold = opened.task.learned.get("threshold")
        if threshold is not None:
            opened.task.learned["threshold"] = None
            found[name] = {
                "threshold": threshold,
                "settled": found[name],
                **scores(opened.task, rows, outputs, rare_share),
            }
            opened.task.learned["threshold"] = threshold
    return found


def trained(variant, seed, run_dir, about):
    """Train and test one variant with one seed."""
    torch.set_num_threads(1)
    change, tests = VARIANTS[variant]
    directory = run_dir / name_of(variant, seed)
    shutil.rmtree(
        directory, ignore_errors=True
    )  # a run that was stopped begins again: its seconds are measured whole
    values = filled(merged(merged(PLAIN, {"train": about["train"]}), change), run_dir, seed)
    if about["quick"]:
        values["train"]["max_steps"] = about["train"]["max_steps"]
    values |= {"run_dir": str(directory), "seed": seed, "samples": 0}
    recipe = recipe_named(RECIPE)
    module = load_recipe(recipe)
    config = build(module.Config, values, variant)
    with contextlib.redirect_stderr(io.StringIO()):
        # What `finetune` does, step by step, on one thread: the runs here share the cores.
        started = time.process_time()
        prepare_process()
        torch.set_num_threads(1)
        run = Run(config)
        run.begin()
        set_seed(seed)
        finetuning = Finetuning(module.make_task(config), config, recipe, run)
        finetuning.open_start()
        finetuning.data.read()
        finetuning.fit_task()
        finetuning.data.encode()
        finetuning.load_model()
        training = time.process_time()
        finetuning.measure_before()
        finetuning.train()
        trained_for = time.process_time() - training
        finetuning.save()
        finetuning.measure_after()
        finetuning.report()
        total = time.process_time() - started
        shutil.rmtree(directory / "checkpoints")
        after = json.loads((directory / "after.json").read_text())
        found = tested(open_run(directory), run_dir, tests, about["sizes"]["rare_share"])
    seconds = {"training_seconds": trained_for, "processor_seconds": total}
    return {
        "rows": len(finetuning.data.rows),
        "validation": after["metrics"],
        **seconds,
        "test": found,
    }


def combined(variant, seed, run_dir, about):
    """Combine the adapters of finished runs; test it in place of the first run's adapter."""
    torch.set_num_threads(1)
    how, parts = COMBINED[variant]
    parts = {filled(name, run_dir, seed): weight for name, weight in parts.items()}
    directory, first = run_dir / name_of(variant, seed), run_dir / next(iter(parts))
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "task.json"):
        shutil.copy(first / name, directory / name)
    combine(
        {run_dir / name / "adapter": weight for name, weight in parts.items()},
        directory / "adapter",
        how=how,
    )
    return {"test": tested(open_run(directory), run_dir, BOTH, about["sizes"]["rare_share"])}


class Journal:
    """The runs that are done, one JSON line each, and a way to do one that is not."""

    def __init__(self, run_dir, about):
        self.run_dir, self.about, self.path = run_dir, about, run_dir / "runs.jsonl"

    def lines(self):
        """The runs that were made with these settings."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [found for found in map(json.loads, lines) if found["about"] == self.about]

    def wait(self, variant, seed):
        """Wait for the runs that this one builds on, which are earlier in the queue."""
        needs = json.dumps(
            filled(
                VARIANTS[variant][0] if variant in VARIANTS else COMBINED[variant][1], "RUN", seed
            )
        )
        names = {name_of(each, number) for each in VARIANTS for number in range(10)}
        needed = {name for name in names if f'"{name}"' in needs or f'"RUN/{name}"' in needs}
        for _ in range(1200):
            if needed <= {name_of(found["variant"], found["seed"]) for found in self.lines()}:
                return True
            time.sleep(1)
        return False

    def result(self, variant, seed):
        """Do the run unless it is there; a problem is told, and the other runs go on."""
        if any((found["variant"], found["seed"]) == (variant, seed) for found in self.lines()):
            return
        if not self.wait(variant, seed):
            print(f"{variant}, seed {seed}: what it builds on is not there", flush=True)
            return
        started = time.monotonic()
        try:
            found = (trained if variant in VARIANTS else combined)(
                variant, seed, self.run_dir, self.about
            )
        except PeftkitError as problem:
            print(f"{variant}, seed {seed}: {type(problem).__name__}: {problem}", flush=True)
            return
        found = {
            "variant": variant,
            "seed": seed,
            "wall_seconds": time.monotonic() - started,
            **found,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(found | {"about": self.about}) + "\n")
        accuracy = ", ".join(
            f"{name} {100 * each['accuracy']:.2f}" for name, each in found["test"].items()
        )
        print(f"{variant}, seed {seed}: {accuracy}; {found['wall_seconds']:.0f} s", flush=True)


def queue(seeds):
    """The runs, the most informative first.

    The plain ones, then the variants seed by seed, the slow ones at the end.
    """
    late = (*LATE, *RADII, TEACHER)
    quick = [variant for variant in VARIANTS if variant != "plain" and variant not in late]
    jobs = [
        *(("plain", seed) for seed in (0, 1, 2)),
        *((variant, 0) for variant in (*RADII, TEACHER, *TAUGHT)),
    ]
    for seed in range(seeds):
        jobs += [(variant, seed) for variant in quick]
        jobs += [
            (variant, seed) for variant in COMBINED if seed == 0 or "of each seed" not in variant
        ]
    return list(
        dict.fromkeys([*jobs, *((variant, seed) for variant in LATE for seed in range(seeds))])
    )


def main():
    """Run what is not done and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="3 steps on a few rows, to see that it runs"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at a time; each computes on one thread"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each variant")
    parser.add_argument(
        "--only", nargs="+", choices=[*VARIANTS, *COMBINED], help="these variants alone"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the results of the runs that are there"
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/effects"))
    chosen = parser.parse_args()
    run_dir = chosen.run_dir / "quick" if chosen.quick else chosen.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    small = {"train": 40, "validation": 20, "test": 40, "unlabelled": 40}
    train = TRAIN | ({"max_steps": 3} if chosen.quick else {})
    about = {
        "train": train,
        "sizes": SIZES | (small if chosen.quick else {}),
        "quick": chosen.quick,
    }
    journal, rows = Journal(run_dir, about), write_data(run_dir / "data", about["sizes"])
    jobs = [
        job
        for job in queue(1 if chosen.quick else chosen.seeds)
        if not chosen.only or job[0] in chosen.only
    ]
    if not chosen.report:
        with ProcessPoolExecutor(chosen.workers, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(journal.result, *zip(*jobs, strict=True)))
    folder = run_dir if chosen.quick else Path(__file__).parent / "results"
    configs = {variant: change for variant, (change, _) in VARIANTS.items()}
    described = {
        "plain_config": PLAIN,
        "changes": configs,
        "combined": COMBINED,
        "rows": rows,
        "workers": chosen.workers,
    }
    write_report(folder, run_dir, about | described, journal.lines())


if __name__ == "__main__":
    main()
