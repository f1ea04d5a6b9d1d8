"""What `effects.py` writes: every run as JSON, and the tables in Markdown.

What was written by hand below the tables stays.
"""

import json
from math import log
from statistics import mean, stdev
from typing import Any

import torch

from peftkit.metrics.tables import markdown
from peftkit.runs.process import environment

BY_HAND = "## What it says"


def write_report(folder, run_dir, about, runs):
    """Write ``effects.json`` and ``effects.md`` of the runs that are there."""
    runs = [{key: value for key, value in found.items() if key != "about"} for found in runs]
    result = {"command": "python -m benchmarks.effects", "environment": environment(), **about}
    by_name: dict[str, Any] = {}
    for found in runs:
        by_name.setdefault(found["variant"], {})[found["seed"]] = found
    ensemble = _ensemble(run_dir, by_name["plain"]) if len(by_name.get("plain", {})) > 1 else None
    lines = ",\n".join("  " + json.dumps(found) for found in runs)
    text = (
        json.dumps(result | {"ensemble": ensemble}, indent=1)[:-2]
        + f',\n "runs": [\n{lines}\n ]\n}}\n'
    )
    (folder / "effects.json").write_text(text)
    parts = [_introduction(about, result["environment"]), _effects(about, by_name)]
    parts += [_rare(about, by_name), _together(by_name, ensemble), _continued(about, by_name)]
    page = folder / "effects.md"
    kept = page.read_text().partition(BY_HAND) if page.exists() else ("", "", "")
    text = "\n\n".join(part for part in parts if part) + "\n"
    page.write_text(text + (f"\n{BY_HAND}{kept[2]}" if kept[1] else ""))
    print(text)


def _ensemble(run_dir, plain):
    """The mean of the plain runs' probabilities, as `peftkit predict RUN RUN RUN` has it."""
    found = {}
    for name in ("films_test", "products_test"):
        rows = [
            json.loads(line)
            for line in (run_dir / "data" / f"{name}.jsonl").read_text().splitlines()
        ]
        each = [
            json.loads((run_dir / f"plain-{seed}" / f"{name}.json").read_text())
            for seed in sorted(plain)
        ]
        outputs = torch.tensor(each).mean(0).tolist()
        chosen = [
            p[("negative", "positive").index(row["label"])]
            for row, p in zip(rows, outputs, strict=True)
        ]
        right = [likely == max(p) for likely, p in zip(chosen, outputs, strict=True)]
        found[name] = {
            "accuracy": mean(right),
            "nll": -mean(map(log, chosen)),
            "seeds": sorted(plain),
        }
    return found


def _introduction(about, machine):
    train, rows, packages = about["train"], about["rows"], machine["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft"))
    return (
        "# What the recipes' capabilities do on a small real task\n\n`sample:films` (is a "
        f"sentence of a film review positive?): {rows['films']} labelled sentences to train, "
        f"{rows['films_test']} to test, {rows['validation']} held out, which decided nothing but "
        f"the radius of fgm. all-MiniLM-L6-v2 with LoRA (r 8), {train['max_steps']} steps of "
        f"{train['batch_size']} in every run (the teacher: "
        f"{about['changes']['teacher: 6400 sentences']['train']['max_steps']}), learning rate "
        f"{train['learning_rate']:g} unless the table says otherwise, bfloat16 autocast on float32 "
        "weights. Each variant is the recipe text_classification with another config "
        "(`effects.json` has the changes).\n\n`python -m benchmarks.effects` · CPU "
        f"({machine['processor']}), one thread a run, {about['workers']} runs at a time; {versions}"
    )


def _accuracies(runs, where="films_test"):
    return [100 * found["test"][where]["accuracy"] for found in runs]


def _listed(values):
    """Values on one line, seed by seed."""
    return ", ".join(f"{each:.1f}" for each in values)


def _paired(runs, plain, where="films_test"):
    """The differences to the plain runs of the same seeds, in points."""
    seeds = [seed for seed in sorted(runs) if seed in plain]
    both = (_accuracies([each[seed] for seed in seeds], where) for each in (runs, plain))
    return [one - other for one, other in zip(*both, strict=True)]


def _spread(values, digits=1):
    """A mean with sign, and the standard deviation where there are several."""
    if len(values) < 2:
        return f"{mean(values):+.{digits}f}"
    return f"{mean(values):+.{digits}f} ± {stdev(values):.{digits}f}"


def _effects(about, by_name):
    """Every variant on the balanced task beside the plain runs."""
    plain = by_name["plain"]
    names = [
        name
        for name in about["changes"]
        if name in by_name and not name.startswith(("rare", "products"))
    ]
    rows = []
    for name in names:
        runs = [found for _, found in sorted(by_name[name].items())]
        same = [plain[found["seed"]] for found in runs if found["seed"] in plain]
        times = [
            one["training_seconds"] / other["training_seconds"]
            for one, other in zip(runs, same, strict=True)
        ]
        nll = [one["test"]["films_test"]["nll"] for one in runs]
        plain_nll = [one["test"]["films_test"]["nll"] for one in same]
        accuracies = _accuracies(runs)
        accuracy_gain = nll_gain = ""
        if name != "plain":
            accuracy_gain = _spread(_paired(by_name[name], plain))
            nll_gain = f"{mean(nll) - mean(plain_nll):+.3f}"
        rows.append(
            [
                name,
                _listed(accuracies),
                f"{mean(accuracies):.1f}",
                accuracy_gain,
                f"{mean(nll):.3f}",
                nll_gain,
                f"{mean(times):.2f}",
            ]
        )
    head = [
        "variant",
        "test accuracy, seed by seed",
        "mean",
        "minus plain",
        "-log p",
        "minus plain",
        "time",
    ]
    count = about["rows"]["films_test"]
    accuracy = mean(_accuracies(plain.values())) / 100
    standard_error = 100 * (accuracy * (1 - accuracy) / count) ** 0.5  # of a binomial share
    return "\n".join([
        "## Beside the plain run", "", markdown(head, rows), "",
        'Points. "Minus plain" is the mean of the differences to the plain runs of the same '
        "seeds, ± their standard deviation; a seed that is missing was not run. "
        f"The {count} test rows make {standard_error:.1f} points of standard error in each "
        "accuracy. -log p: the mean over test rows of minus the logarithm of the right label's "
        "probability; lower is better. Time: processor seconds of training over those of the "
        "plain runs, with the measurement before it and without what teachers take to predict.",
    ])  # fmt: skip


def _rare(about, by_name):
    """The runs on one positive sentence in ten."""
    rows = []
    for name in (each for each in about["changes"] if each.startswith("rare") and each in by_name):
        runs = [found["test"]["films_test"] for _, found in sorted(by_name[name].items())]
        for rule, figures in (
            ("likelier class", runs),
            ("threshold best-f1", [each["settled"] for each in runs]),
        ):
            cells = [name.removeprefix("rare: "), rule]
            for key in ("rare_recall", "rare_f1", "rare_macro_f1"):
                percent = [100 * each[key] for each in figures]
                cells += [_listed(percent), f"{100 * mean(each[key] for each in figures):.1f}"]
            rows.append(cells)
    if not rows:
        return ""
    head = [
        "variant",
        "decision",
        "recall of positive",
        "mean",
        "F1 of positive",
        "mean",
        "macro F1",
        "mean",
    ]
    return "\n".join([
        "## One positive sentence in ten", "", markdown(head, rows), "",
        f"{about['rows']['rare']} sentences to train, "
        f"{round(about['sizes']['rare_share'] * about['rows']['rare'])} of them positive; the "
        f"threshold is found on {about['rows']['rare_validation']} such validation sentences. The "
        "test rows are those of the other tables, weighed so that one tenth is positive. The "
        "threshold changes no weight: both lines are one run.",
    ])  # fmt: skip


def _together(by_name, ensemble):
    """The three plain runs together."""
    if ensemble is None:
        return ""
    plain = [found for _, found in sorted(by_name["plain"].items())]
    singles = [mean(_accuracies(plain, where)) for where in ensemble]
    nll = mean(found["test"]["films_test"]["nll"] for found in plain)
    rows = [["one run (mean)", *(f"{each:.1f}" for each in singles), f"{nll:.3f}"]]
    seeds = len(ensemble["films_test"]["seeds"])
    accuracy = [f"{100 * each['accuracy']:.1f}" for each in ensemble.values()]
    rows.append(
        [
            f"ensemble of {seeds}: mean of probabilities",
            *accuracy,
            f"{ensemble['films_test']['nll']:.3f}",
        ]
    )
    for name in (each for each in by_name if "of each seed" in each):
        test = by_name[name][0]["test"]
        accuracy = [f"{100 * test[where]['accuracy']:.1f}" for where in ensemble]
        rows.append([f"peftkit combine: {name}", *accuracy, f"{test['films_test']['nll']:.3f}"])
    return "\n".join([
        "## The plain runs of several seeds together", "",
        markdown(["what", "films", "products", "-log p on films"], rows), "",
        "The seeds have different starts (A of LoRA and the head), which the mean of parameters "
        "does not expect.",
    ])  # fmt: skip


def _continued(about, by_name):
    """The plain runs trained on, on products."""
    plain, rows = by_name["plain"], []
    names = [name for name in by_name if name.startswith(("products", "films and products"))]
    for name in ["plain", *names]:
        runs = by_name[name]
        seeds = [
            seed
            for seed in sorted(runs)
            if name != "plain" or any(seed in by_name[each] for each in names)
        ]
        cells = []
        for where in ("films_test", "products_test"):
            chosen = {seed: runs[seed] for seed in seeds}
            cells.append(_listed(_accuracies(chosen.values(), where)))
            cells.append("" if name == "plain" else _spread(_paired(chosen, plain, where)))
        rows.append(["films alone (where the others start)" if name == "plain" else name, *cells])
    if not names:
        return ""
    head = [
        "run",
        "films, seed by seed",
        "minus before",
        "products, seed by seed",
        "minus before",
    ]
    return "\n".join([
        "## Films first, then products", "",
        markdown(head, rows), "",
        f"{about['rows']['products']} product sentences, {about['train']['max_steps']} more steps "
        f"from the plain run's adapter (`start`); {about['rows']['products_test']} products to "
        "test. The last line is `peftkit combine --how parameters` of the adapter before and the "
        "adapter after, half and half: adapters of one start.",
    ])  # fmt: skip
