"""Does each method attach, train, save, load, merge and detach, on every architecture and task?

    python -m benchmarks.coverage [--sample N] [--methods ...] [--tasks ...] [--types ...] [--jobs
    N] [--out FILE]

Each question is answered in a process of its own kind, which is replaced when it crashes or takes
too long. Answers are appended to a JSON-lines file; what stands there already for the same versions
is not asked again. `coverage.md` beside it counts the answers, peftkit and plain PEFT side by side,
and groups the reasons.
"""

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import queue
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import zoo
from benchmarks.coverage_checks import METHODS, has_counterpart, serve

ROOT = Path(__file__).parent.parent
FIELDS = ("task", "type", "method", "library")


def main() -> None:
    """Ask, record, report."""
    options = _options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = {_key(row) for row in read(options.out)}
    versions = {library: _versions(library) for library in options.libraries}
    asked = [
        {**dict(zip(FIELDS, question, strict=True)), "versions": versions[question[-1]]}
        for question in questions(options)
    ]
    open_questions = [row for row in asked if options.again or _key(row) not in known]
    print(f"{len(asked)} questions, {len(open_questions)} of them open", flush=True)
    _answer(open_questions, options)
    report = summary(_newest(read(options.out)))
    print(report)
    options.out.with_suffix(".md").write_text(report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/coverage.jsonl")
    parser.add_argument(
        "--sample", type=int, help="ask about this many pairs only, spread out over all of them"
    )
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help="or the beginnings of their names"
    )
    parser.add_argument("--tasks", nargs="+", default=list(zoo.TASKS))
    parser.add_argument("--types", nargs="+", help="model types as transformers calls them")
    parser.add_argument("--libraries", nargs="+", default=["peftkit", "peft"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one question")
    parser.add_argument("--again", action="store_true", help="ask what has been answered too")
    return parser.parse_args()


def questions(options: argparse.Namespace) -> Iterator[tuple[str, str, str, str]]:
    """Yield (task, type, method, library) for what the options choose."""
    pairs = [pair for pair in zoo.pairs() if pair.task in options.tasks]
    pairs = [pair for pair in pairs if options.types is None or pair.model_type in options.types]
    if options.sample and options.sample < len(pairs):
        pairs = [pairs[number * len(pairs) // options.sample] for number in range(options.sample)]
    for pair in pairs:
        for method in METHODS:
            if method.startswith(tuple(options.methods)):
                for library in options.libraries:
                    if library == "peftkit" or has_counterpart(method):
                        yield (*pair, method, library)


def _versions(library: str) -> dict[str, str]:
    """Return the versions that an answer depends on; peftkit's is a digest of its source."""
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
    }
    if library == "peftkit":
        digest = hashlib.sha256()
        for path in sorted((ROOT / "peftkit").rglob("*.py")):
            digest.update(path.read_bytes())
        versions["peftkit"] = digest.hexdigest()[:12]
    return versions


def _key(row: dict[str, Any]) -> str:
    return json.dumps([[row[field] for field in FIELDS], row["versions"]], sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a results file, without a last line that was cut off."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({tuple(row[field] for field in FIELDS): row for row in rows}.values())


class Worker:
    """A process that answers questions; a new one takes its place when it dies or is too slow."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *question: str) -> dict[str, Any]:
        """Return the outcome of a question."""
        self._connection.send(question)
        try:
            if self._connection.poll(self.timeout):
                answer: dict[str, Any] = self._connection.recv()
                return answer
            result = {
                "outcome": "failed",
                "check": "takes its time",
                "reason": f"no answer in {self.timeout:.0f} s",
            }
        except EOFError:
            self._process.join()
            reason = f"the process ended with {self._process.exitcode}"
            result = {"outcome": "failed", "check": "survives", "reason": reason}
        self._process.kill()
        self._start()
        return result


def _answer(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    for row in [*rows, *[None] * options.jobs]:
        waiting.put(row)
    lock, done = threading.Lock(), Counter[str]()

    def work() -> None:
        worker = Worker(options.timeout)
        while (row := waiting.get()) is not None:
            started = time.monotonic()
            answer = worker.ask(*(row[field] for field in FIELDS))
            row |= {**answer, "seconds": round(time.monotonic() - started, 2)}
            with lock:
                done[row["outcome"]] += 1
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                if done.total() % 50 == 0:
                    print(f"{done.total()} of {len(rows)}: {dict(done)}", flush=True)

    threads = [threading.Thread(target=work) for _ in range(min(options.jobs, len(rows)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the report: passes by task and method, and every reason with its pairs."""
    used = dict.fromkeys(
        pair for row in rows for pair in row["versions"].items()
    )  # more than one where some rows are old
    about = ", ".join(f"{name} {version}" for name, version in used)
    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["task"], row["method"], row["library"]][row["outcome"]] += 1
    methods = [method for method in METHODS if any(key[1] == method for key in counts)]
    tasks = [task for task in zoo.TASKS if any(key[0] == task for key in counts)]
    lines = ["# Coverage", "", f"CPU, float32, random weights; {about}.", ""]
    about_the_table = (
        "Passes of pairs (task x type) whose bare model can be built and trained here, peftkit / "
        "plain PEFT; r: refused by peftkit with a sentence."
    )
    lines += [
        about_the_table,
        "",
        f"| task | {' | '.join(methods)} |",
        "| --- |" + " --- |" * len(methods),
    ]
    for task in [*tasks, "all"]:
        cells = [_cell(_added(counts, task, method, tasks)) for method in methods]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    for library in ("peftkit", "peft"):
        for outcome in ("failed", "refused"):
            lines += _reasons(rows, library, outcome)
    lines += ["", "## Bare models that cannot be built or trained here", ""]
    unbuildable = {
        (row["reason"], f"{row['task']} {row['type']}")
        for row in rows
        if row["outcome"] == "unbuildable"
    }
    lines += [f"- {pair}: {reason}" for reason, pair in sorted(unbuildable)]
    return "\n".join(lines) + "\n"


def _added(
    counts: dict[tuple[str, str, str], Counter[str]], task: str, method: str, tasks: list[str]
) -> dict[str, Counter[str]]:
    chosen = tasks if task == "all" else [task]
    return {
        library: sum((counts[name, method, library] for name in chosen), Counter())
        for library in ("peftkit", "peft")
    }


def _cell(by_library: dict[str, Counter[str]]) -> str:
    ours, theirs = by_library["peftkit"], by_library["peft"]
    cell = [_passes(counter) for counter in (ours, theirs)]
    refused = f" ({ours['refused']} r)" if ours["refused"] else ""
    return f"{cell[0]}{refused} / {cell[1]}"


def _passes(counter: Counter[str]) -> str:
    defined = counter.total() - counter["unbuildable"]
    return f"{counter['ok']} of {defined}" if defined else "-"


def _reasons(rows: list[dict[str, Any]], library: str, outcome: str) -> list[str]:
    """Group the rows of an outcome by method, check and reason.

    Reasons that differ only in numbers or in names of layers are one.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["library"] == library and row["outcome"] == outcome:
            alike = re.sub(
                r"\d+(\.\d+)?(e[-+]?\d+)?", "N", re.sub(r"\[.*|'[^']*'", "", row["reason"])
            )[:70]
            groups[row["method"], row["check"], alike].append(row)
    if not groups:
        return []
    lines = ["", f"## {library}: {outcome}", ""]
    for (method, name, _), group in sorted(
        groups.items(), key=lambda item: (item[0][0], -len(item[1]))
    ):
        types = ", ".join(f"{row['type']} ({row['task']})" for row in group[:8])
        more = f" and {len(group) - 8} more" if len(group) > 8 else ""
        lines.append(
            f"- **{method}**, {name}, {len(group)}: {group[0]['reason'][:260]} — {types}{more}"
        )
    return lines


if __name__ == "__main__":
    main()
