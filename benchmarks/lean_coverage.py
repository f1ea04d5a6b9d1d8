"""On every architecture and task: which parts of the lean step engage, and are the numbers PEFT's?

    python -m benchmarks.lean_coverage [--sample N] [--tasks ...] [--types ...] [--timeout N] [--out
    FILE] [--again]

Each pair is answered in a process that is replaced when it crashes or takes too long. Answers are
appended to a JSON-lines file; what stands there already for the same versions is not asked again. A
table of counts, with reasons and failures, is written beside it.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import coverage, zoo
from benchmarks.lean_coverage_checks import TOLERANCE, serve

FIELDS = ("task", "type")
GROUPS = {
    "causal-lm": ("causal-lm",),
    "seq2seq-lm": ("seq2seq-lm",),
    "other tasks": tuple(task for task in zoo.TASKS if task not in ("causal-lm", "seq2seq-lm")),
    "all": tuple(zoo.TASKS),
}
IN_CHUNKS = "in chunks of tokens"
Row = dict[str, Any]


def main() -> None:
    """Ask, record, report."""
    options = _options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    versions = coverage._versions("peftkit")
    known = {_key(row) for row in coverage.read(options.out)}
    asked: list[dict[str, Any]] = [
        {"task": pair.task, "type": pair.model_type, "versions": versions}
        for pair in _pairs(options)
    ]
    open_questions = [row for row in asked if options.again or _key(row) not in known]
    print(f"{len(asked)} pairs, {len(open_questions)} of them open", flush=True)
    worker = Worker(options.timeout)
    done: Counter[str] = Counter()
    for row in open_questions:
        started = time.monotonic()
        row |= {
            **worker.ask(*(row[field] for field in FIELDS)),
            "seconds": round(time.monotonic() - started, 2),
        }
        done[row["outcome"]] += 1
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if done.total() % 50 == 0:
            print(f"{done.total()} of {len(open_questions)}: {dict(done)}", flush=True)
    report = summary(_newest(coverage.read(options.out)))
    print(report)
    options.out.with_suffix(".md").write_text(report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=coverage.ROOT / "benchmarks/results/lean_coverage.jsonl"
    )
    parser.add_argument(
        "--sample", type=int, help="ask about this many pairs only, spread out over all of them"
    )
    parser.add_argument("--tasks", nargs="+", default=list(zoo.TASKS))
    parser.add_argument("--types", nargs="+", help="model types as transformers calls them")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one pair")
    parser.add_argument("--again", action="store_true", help="ask what has been answered too")
    return parser.parse_args()


def _pairs(options: argparse.Namespace) -> list[zoo.Pair]:
    pairs = [pair for pair in zoo.pairs() if pair.task in options.tasks]
    pairs = [pair for pair in pairs if options.types is None or pair.model_type in options.types]
    if options.sample and options.sample < len(pairs):
        pairs = [pairs[number * len(pairs) // options.sample] for number in range(options.sample)]
    return pairs


def _key(row: Row) -> str:
    return json.dumps([row[field] for field in (*FIELDS, "versions")], sort_keys=True)


def _newest(rows: Iterable[Row]) -> list[Row]:
    return list({(row["task"], row["type"]): row for row in rows}.values())


class Worker(coverage.Worker):
    """A process that compares pairs."""

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def summary(rows: list[Row]) -> str:
    """Return the report: counts by task, what engages, whose loss is used, what differs."""
    compared = _of(rows, "all")
    used = dict.fromkeys(pair for row in rows for pair in row["versions"].items())
    lines = ["# Where the lean training step engages, and whether it gives PEFT's numbers", ""]
    lines += [
        f"CPU, random weights; {', '.join(f'{name} {version}' for name, version in used)}.",
        "",
    ]
    about_the_table = (
        "Two training steps with `attach(model, LoraConfig(r=4), lean=True)` against "
        "`lean=False`, with the same seeds, and an evaluation after them. Equal: the losses and "
        f"every gradient differ by at most {TOLERANCE:g} of their norm, in float32, or, where a "
        "gradient is itself of the size of float32's rounding, in float64; buffers and evaluation "
        "logits are alike. With the backbone in bfloat16: by at most a tenth, or a hundredth of "
        "the largest gradient. Parts engage in X of Y pairs: at least one takes the lean path, of "
        "the pairs that have one."
    )
    lines += [
        about_the_table,
        "",
        f"| | {' | '.join(GROUPS)} |",
        "| --- |" + " --- |" * len(GROUPS),
    ]
    for title, cell in _TABLE.items():
        lines.append(f"| {title} | {' | '.join(cell(_of(rows, group)) for group in GROUPS)} |")
    losses = [
        (row, row.get("loss", "unknown").removeprefix("the model's own: "))
        for row in compared
        if not _chunked(row)
    ]
    lines += _grouped("The loss stays the model's own", losses)
    reasons = [(row, reason) for row in compared for reason in row.get("layers_of_peft", ())]
    lines += _grouped("LoRA layers on PEFT's path", reasons)
    missed = [
        (row, f"such as {row['layers_missed'][0]}") for row in compared if row.get("layers_missed")
    ]
    lines += _grouped("LoRA layers that could be lean and were not", missed)
    for outcome in ("differs", "fails", "refused", "plain fails", "failed", "unbuildable"):
        lines += _grouped(
            outcome.capitalize(),
            [(row, row["reason"]) for row in rows if row["outcome"] == outcome],
        )
    for name in ("checkpointing", "routers", "bfloat16"):
        failing = [(row, row[name]) for row in rows if isinstance(row.get(name), str)]
        lines += _grouped(f"{name.capitalize()}: not compared", failing)
    lines += _grouped(
        "Equal in float64 only", [(row, _rounding(row)) for row in compared if _rounding(row)]
    )
    return "\n".join(lines) + "\n"


def _of(rows: list[Row], group: str) -> list[Row]:
    """Return the rows of a group of tasks that could be compared."""
    return [row for row in rows if row["task"] in GROUPS[group] and "bytes_plain" in row]


def _chunked(row: Row) -> bool:
    return row.get("loss") == IN_CHUNKS


def _rounding(row: Row) -> str:
    found = [
        row[name]
        for name in ("exact", "lean", "checkpointing", "routers")
        if "float64" in row.get(name, ())
    ]
    if row["outcome"] != "ok" or not found:
        return ""
    first = found[0]
    in_float64 = first["float64"]["worst"]
    return f"{first['where']} differs by {first['worst']:.1e}, in float64 by {in_float64:.1e}"


def _counted(
    engages: Callable[[Row], Any], there: Callable[[Row], Any] = lambda row: True
) -> Callable[[list[Row]], str]:
    return lambda rows: (
        f"{sum(bool(engages(row)) for row in rows)} of {sum(bool(there(row)) for row in rows)}"
    )


def _equal(name: str) -> Callable[[list[Row]], str]:
    """Count the comparisons that hold, of those that were made."""

    def fails(row: Row) -> bool:
        return bool(row.get("reason", "").startswith(f"{name}:"))

    def made(row: Row) -> bool:
        return isinstance(row.get(name), dict) or fails(row)

    return _counted(lambda row: made(row) and not fails(row), made)


def _saved(rows: list[Row]) -> str:
    shares = [
        row["bytes_lean"] / row["bytes_plain"]
        for row in rows
        if row.get("bytes_lean") and row["bytes_plain"]
    ]
    return (
        f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        if shares
        else "-"
    )


_TABLE: dict[str, Callable[[list[Row]], str]] = {
    "equal": _equal("lean"),
    "equal with gradient checkpointing": _equal("checkpointing"),
    "equal with the losses of routers": _equal("routers"),
    "equal in exact mode": _equal("exact"),
    "the same bits in exact mode": _counted(lambda row: row.get("exact", {}).get("worst") == 0),
    "equal in exact mode, in bfloat16": _equal("bfloat16"),
    "LoRA layers engage": _counted(lambda row: row.get("layers")),
    "LoRA layers engage wherever a gradient comes": _counted(
        lambda row: row.get("layers") and not row["layers_of_peft"] and not row["layers_missed"]
    ),
    "norms engage": _counted(lambda row: row.get("norms"), lambda row: row.get("norms_of_all")),
    "feed-forward parts engage": _counted(lambda row: row.get("feed_forwards")),
    "feed-forward parts or activations engage": _counted(
        lambda row: row.get("feed_forwards") or row.get("activations")
    ),
    "the loss in chunks": _counted(_chunked),
    "the loss in chunks, in bfloat16": _counted(
        lambda row: row.get("loss_bfloat16") == IN_CHUNKS, lambda row: "loss_bfloat16" in row
    ),
    "bytes alive after the forward pass, of plain: median (range)": _saved,
}


def _grouped(title: str, found: list[tuple[Row, str]]) -> list[str]:
    """Return the reasons, and the pairs that each applies to.

    Reasons that differ only in numbers or in names of layers are one.
    """
    groups: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    for row, reason in found:
        groups[re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "N", reason)].append((row, reason))
    lines = ["", f"## {title}", ""] if groups else []
    for group in sorted(groups.values(), key=len, reverse=True):
        by_task: dict[str, list[str]] = defaultdict(list)
        for row, _ in group:
            by_task[row["task"]].append(row["type"])
        pairs = "; ".join(f"{task}: {', '.join(types)}" for task, types in by_task.items())
        lines.append(f"- **{len(group)}**: {group[0][1]} ({pairs})")
    return lines


if __name__ == "__main__":
    main()
