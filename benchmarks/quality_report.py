"""What `quality.py` writes: every run as JSON, and the tables in Markdown."""

import json
from statistics import mean, stdev

from peftkit.runs.process import environment

WITHIN = 2.0  # points that a method may lie below full fine-tuning


def write_report(folder, about, runs):
    """Write ``quality.json`` and ``quality.md``."""
    chosen = {
        method: [
            found for seed in about["seeds"] for found in runs if _is(found, method, rate, seed)
        ]
        for method, rate in about["chosen"].items()
    }
    summary = {method: _summary(found, chosen["full"]) for method, found in chosen.items()}
    for found in runs:
        found.pop("settings", None)
    result = {
        "command": "python -m benchmarks.quality",
        "environment": environment(),
        **about,
        "summary": summary,
    }
    lines = ",\n".join("  " + json.dumps(found) for found in runs)
    (folder / "quality.json").write_text(
        json.dumps(result, indent=1)[:-2] + f',\n "runs": [\n{lines}\n ]\n}}\n'
    )
    text = "\n".join(
        [
            *_introduction(about, result["environment"]),
            *_table(about, summary),
            *_search(about, runs),
        ]
    )
    (folder / "quality.md").write_text(text + "\n")
    print(text)


def _is(found, method, rate, seed):
    return (found["method"], found["learning_rate"], found["seed"]) == (method, rate, seed)


def _summary(found, full):
    scores = [100 * one["test"]["accuracy"] for one in found]
    behind = [
        score - 100 * other["test"]["accuracy"] for score, other in zip(scores, full, strict=True)
    ]
    return {
        "parameters_at_start": found[0]["parameters_at_start"],
        "parameters_at_end": [one["parameters_at_end"] for one in found],
        "test_accuracy": scores,
        "mean": mean(scores),
        "standard_deviation": stdev(scores) if len(scores) > 1 else None,
        "minus_full": mean(behind),
        "processor_seconds": mean(one["processor_seconds"] for one in found),
        "seconds": mean(one["seconds"] for one in found),
    }


def _introduction(about, machine):
    split, settings = about["split"], about["settings"]
    return [
        "# How well each method learns a real task",
        "",
        "Sentences from film reviews, positive or negative by the sign of the mean rating of "
        "about 20 people (Hutto and Gilbert 2014; ratings nearer to zero than "
        f"{about['threshold']} left out): {split['train']} to train, {split['validation']} to "
        f"choose the learning rate, {split['test']} to test. all-MiniLM-L6-v2, "
        f"{settings['max_steps']} steps of {settings['batch_size']} in every run, bfloat16 "
        f"autocast on float32 weights, one thread a run, {about['workers']} runs at a time.",
        "",
        f"`python -m benchmarks.quality` · {machine['processor']}, torch "
        f"{machine['packages']['torch']}, transformers {machine['packages']['transformers']}, "
        f"peft {machine['packages']['peft']}",
        "",
    ]


def _table(about, summary):
    yield (
        "| method | trained parameters | learning rate | test accuracy, seed by seed | mean "
        "| deviation | minus full | s |"
    )
    yield "| --- | --: | --: | --- | --: | --: | --: | --: |"
    for method, row in summary.items():
        at_start, at_end = row["parameters_at_start"], round(mean(row["parameters_at_end"]))
        parameters = (
            f"{at_start:,}" if at_start == at_end else f"{at_start:,}, at the end {at_end:,}"
        )
        scores = ", ".join(f"{score:.1f}" for score in row["test_accuracy"])
        deviation = "" if row["standard_deviation"] is None else f"{row['standard_deviation']:.1f}"
        yield (
            f"| {method} | {parameters} | {about['chosen'][method]:g} | {scores} | "
            f"{row['mean']:.1f} | {deviation} | {row['minus_full']:+.1f} | "
            f"{row['processor_seconds']:.0f} |"
        )
    accuracy = summary["full"]["mean"] / 100
    error = 100 * (accuracy * (1 - accuracy) / about["split"]["test"]) ** 0.5
    short = [method for method, row in summary.items() if row["minus_full"] < -WITHIN]
    yield ""
    yield (
        f"All in points and processor seconds. The test split alone makes {error:.1f} points of "
        f"standard error in each figure, the same for all methods. More than {WITHIN:.0f} points "
        f"behind full fine-tuning: {', '.join(short) or 'none'}.{_adalora_minus_lora(summary)}"
    )
    yield ""


def _adalora_minus_lora(summary):
    """A sentence, where both were run."""
    if not {"adalora", "lora"} <= summary.keys():
        return ""
    pairs = zip(summary["adalora"]["test_accuracy"], summary["lora"]["test_accuracy"], strict=True)
    ahead = [one - other for one, other in pairs]
    listed = ", ".join(f"{points:+.1f}" for points in ahead)
    return f" AdaLoRA minus LoRA, seed by seed: {listed}; mean {mean(ahead):+.1f}."


def _search(about, runs):
    yield (
        "Validation accuracy by learning rate, first seed; where the best was at an end of the "
        "three, a fourth was tried:"
    )
    yield ""
    yield "| method | learning rate: accuracy |"
    yield "| --- | --- |"
    for method in about["chosen"]:
        tried = [
            found
            for found in runs
            if found["method"] == method and found["seed"] == about["seeds"][0]
        ]
        cells = (
            f"{found['learning_rate']:g}: {100 * found['validation']['accuracy']:.1f}"
            for found in sorted(tried, key=lambda found: found["learning_rate"])
        )
        yield f"| {method} | {', '.join(cells)} |"
