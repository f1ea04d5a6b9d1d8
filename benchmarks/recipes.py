"""Run the recipes' quick configs as a user does, and full fine-tuning beside some of them.

    python -m benchmarks.recipes [--only NAME ...] [--run-dir runs/recipes]

A finished run is not run again. The figures end in ``benchmarks/results/recipes.json`` and
``recipes.md``; what is written there of runs that this call leaves out stays.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from accelerate.utils import set_seed

from peftkit.config.reading import build, load_yaml
from peftkit.metrics.tables import markdown
from peftkit.runs.directory import Run
from peftkit.runs.finetune import Finetuning
from peftkit.runs.process import prepare_process
from peftkit.runs.recipes import load_recipe, recipe_named
from peftkit.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"
# Rows that decided nothing. A config that is not here holds the test rows out already.
TEST = {
    "text_classification/quick": "sample:films/test",
    "text_classification/quick-zh": "sample:chinese-reviews/test",
    "token_classification/quick": "sample:peoples-daily/test",
    "seq2seq/quick": "sample:numbers/test",
    "causal_lm/quick": "sample:films/test",
}
# Learning rates of full fine-tuning: the first from the search in quality.md, the others by hand.
FULL = {
    "text_classification/quick": 1e-4,
    "token_classification/quick": 2e-3,
    "image_classification/quick": 1e-3,
}


class FullFinetuning(Finetuning):
    """A run that trains every weight of the backbone and has no adapter."""

    def attach(self, backbone):
        """Return the backbone, with every weight to be trained."""
        return backbone.requires_grad_(True)


def values_of(name, run_dir):
    """The tree of a quick config's values."""
    return load_yaml(ROOT / "recipes" / "configs" / f"{name}.yaml") | {"run_dir": str(run_dir)}


def launched(name, run_dir):
    """Run a config through `peftkit train`, and measure what it left on the test rows."""
    recipe, _, config = name.partition("/")
    started = time.monotonic()
    if not (run_dir / "after.json").exists():
        path = ROOT / "recipes" / "configs" / recipe / f"{config}.yaml"
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            f"recipes/{recipe}.py",
            "--config",
            str(path),
        ]
        subprocess.run([*command, "--run_dir", str(run_dir)], check=True, cwd=ROOT)
    seconds = time.monotonic() - started
    found = {"minutes": seconds / 60} | described(run_dir)
    if name in TEST:
        output = run_dir / "test.json"
        words = [
            "evaluate",
            str(run_dir),
            "--data",
            TEST[name],
            "--output",
            str(output),
            "--batch_size",
            "64",
        ]
        code = "import sys; from peftkit.cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=ROOT)
        found["test"] = json.loads(output.read_text())["metrics"]
    return found


def described(run_dir):
    """What a finished run's directory says of it."""
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == "train"]
    environment = json.loads((run_dir / "environment.json").read_text())
    return {
        "before": json.loads((run_dir / "before.json").read_text())["metrics"],
        "after": json.loads((run_dir / "after.json").read_text())["metrics"],
        "steps": lines[-1]["step"],
        "training_minutes": lines[-1]["seconds"] / 60,
        "peak_gib": lines[-1]["memory_gib"],
        "trained_parameters": json.loads((run_dir / "model.json").read_text())["attach"][
            "trained_parameters"
        ],
        "environment": {
            key: environment[key] for key in ("processor", "threads", "gpu", "packages")
        },
    }


def fully(name, run_dir):
    """Train all weights for as many steps, and measure the model on the same rows."""
    recipe = load_recipe(recipe_named(name.partition("/")[0]))
    values = values_of(name, run_dir)
    values["train"] |= {"learning_rate": FULL[name], "restore_best": True}
    config = build(recipe.Config, values, name)
    prepare_process()
    run = Run(config)
    run.begin()
    set_seed(config.seed)
    training = FullFinetuning(
        recipe.make_task(config), config, recipe_named(name.partition("/")[0]), run
    )
    training.data.read()
    training.fit_task()
    training.data.encode()
    training.load_model()
    training.measure_before()
    training.train()
    rows = training.task.read(TEST[name]) if name in TEST else training.data.held_out
    metrics = training.measuring.outputs(training.model, rows).metrics
    return {
        "learning_rate": FULL[name],
        "test": metrics,
        "trained_parameters": _trained(training.model),
    }


def _trained(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def report(results):
    """Write the table."""
    head = [
        "config",
        "steps",
        "trained",
        "minutes in all",
        "in training",
        "peak GiB",
        "before",
        "after",
        "on test rows",
    ]
    rows = [_row(name, each) for name, each in results.items() if "steps" in each]
    full = [_full_row(name, each) for name, each in results.items() if "full" in each]
    machine = next(each["environment"] for each in results.values() if "environment" in each)
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    text = [
        "# The recipes' quick configs",
        "",
        f"`python -m benchmarks.recipes` · {machine['threads']} CPU threads, "
        f"{machine['processor']} · {packages}",
        "",
        "One run each. Minutes are those of the whole command, from `accelerate launch` to the "
        "report; where they are missing,",
        f"it ran in two parts. {results.get('about', '')}",
        "",
        markdown(head, rows),
        "",
        "Full fine-tuning of the same model for as many steps, on the same rows (one run, one "
        "learning rate):",
        "",
        markdown(
            ["config", "learning rate", "trained", "all weights", "the config's adapter"], full
        ),
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(text) + "\n")


def _row(name, result):
    """A config's line in the first table."""
    return [
        name,
        str(result["steps"]),
        f"{result['trained_parameters']:,}",
        "" if result["minutes"] is None else f"{result['minutes']:.1f}",
        f"{result['training_minutes']:.1f}",
        f"{result['peak_gib']:.2f}",
        spelled(result["before"]),
        spelled(result["after"]),
        spelled(result.get("test", {})),
    ]


def _full_row(name, result):
    """A config's line in the table of full fine-tuning."""
    full = result["full"]
    return [
        name,
        f"{full['learning_rate']:g}",
        f"{full['trained_parameters']:,}",
        spelled(full["test"]),
        spelled(result.get("test") or result["after"]),
    ]


def spelled(metrics):
    """Metrics on one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def main():
    """Run, measure, write."""
    configs = ROOT / "recipes" / "configs"
    known = sorted(
        str(path.relative_to(configs).with_suffix("")) for path in configs.glob("*/quick*.yaml")
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    parser.add_argument(
        "--full", action="store_true", help="full fine-tuning, instead of the configs themselves"
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only:
        place = (options.run_dir / name.replace("/", "-")).resolve()
        if options.full and name in FULL:
            results.setdefault(name, {})["full"] = fully(
                name, place.with_name(f"{place.name}-full")
            )
        elif not options.full and (name not in results or "steps" not in results[name]):
            results[name] = results.get(name, {}) | launched(name, place)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        report(results)
    print(RESULTS.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
