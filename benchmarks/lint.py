"""The lint of the data: its time, its memory, and how much of what was planted it finds.

    taskset -c 0 python -m benchmarks.lint [--rows 20000] [--output benchmarks/results/lint]

Rows are dialogues of 125 made-up words, the same for every call. Into them are planted copies,
near-copies with 1 or 2 words changed in the question and in the answer, held-out rows from the
training, e-mail addresses, phone numbers and card numbers; and, as look-alikes, prices, dates, ids,
and rows that share a template of 60 words. The time is that of the processor on one core, without
imports and without making the rows. The words are no language, so languages are not tried.
"""

import argparse
import json
import os
import platform
import random
import threading
import time
from importlib.metadata import version
from pathlib import Path

from peftkit.data.lint.items import LintItem
from peftkit.data.lint.linting import AT_START, THOROUGH, lint
from peftkit.metrics.tables import markdown

WORDS = 125
PERSONAL = {
    "an e-mail address": "Write to ivo.k{}@posteo.net, please.",
    "a phone number": "Call +49 30 9018{:02} after six.",
    "a card number": "I paid with 4539 1488 0343 6467.",
}
LOOKALIKES = (
    "It costs $1,299.00 and {} more since 2024-03-12.",
    "Order 4158675309{}, invoice 2024-0098-12345, part 123-456-7890.",
    "Version 10.12.{} runs on 192.168.100.200, ISBN 978-0-306-40615-7.",
)
PLANTED = 100  # of each kind


def made_up(draw, words):
    """Return a text of random words."""
    return " ".join(draw.choices(words, k=WORDS // 2))


def changed(draw, text, words):
    """Return the text with 1 or 2 words changed."""
    parts = text.split()
    for place in draw.sample(range(len(parts)), draw.randint(1, 2)):
        parts[place] = draw.choice(words)
    return " ".join(parts)


def make_rows(count):
    """Return training rows and held-out rows."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    template = " ".join(draw.choices(words, k=60))
    texts = []
    for number in range(count):
        if number % 10 == 0:
            texts.append((f"{template} {draw.choice(words)}", made_up(draw, words)))
        else:
            texts.append((made_up(draw, words), made_up(draw, words)))
    places = iter(draw.sample([place for place in range(count) if place % 10], PLANTED * 11))
    held_out = [texts[next(places)] for _ in range(PLANTED)]
    while len(held_out) < 5 * PLANTED:
        held_out.append((made_up(draw, words), made_up(draw, words)))
    for _ in range(PLANTED):
        original, copy = next(places), next(places)
        texts[copy] = texts[original]
        one, copy = next(places), next(places)
        question, answer = texts[one]
        texts[copy] = (changed(draw, question, words), changed(draw, answer, words))
    for sentences in (PERSONAL.values(), LOOKALIKES):
        for sentence in sentences:
            for number in range(PLANTED):
                place = next(places)
                question, answer = texts[place]
                texts[place] = (f"{question} {sentence.format(number)}", answer)
    return as_items("train.jsonl", texts), as_items("held_out.jsonl", held_out)


def as_items(name, texts):
    """Return the items of pairs of a question and an answer."""
    items = []
    for number, (question, answer) in enumerate(texts, 1):
        items.append(LintItem(f"{name}, row {number}", question, answer=answer))
    return items


def anonymous_mib():
    """Return the process's memory that is not a file's, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("this kernel does not say RssAnon")


class Peak:
    """The most memory that the process takes beside files, in MiB, above what it had before."""

    def __enter__(self):
        self.before = self.most = anonymous_mib()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ends.wait(0.005):
            self.most = max(self.most, anonymous_mib())

    def __exit__(self, *_):
        self._ends.set()
        self._thread.join()
        self.above = self.most - self.before


def measure(rows, *, thorough):
    """Return the time, the memory and the findings of one lint of rows, on all cores it may use."""
    training, held_out = make_rows(rows)
    limit = THOROUGH if thorough else AT_START
    with Peak() as peak:
        started = time.process_time()
        report = lint(training, held_out, limit=limit, thorough=thorough)
        seconds = time.process_time() - started
    found = {}
    for finding in report.findings:
        kind = finding.what if finding.kind == "personal data" else finding.kind
        found[kind] = finding.count
    return {
        "lint": "with --lint" if thorough else "at the start of a run",
        "rows": report.looked_at,
        "seconds": round(seconds, 2),
        "MiB": round(peak.above),
        "found": found,
    }


def main():
    """Measure, and write the figures and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/lint"))
    options = parser.parse_args()
    lint(*make_rows(2_000))  # imports what is imported when it is first needed
    runs = [measure(options.rows, thorough=False), measure(options.rows, thorough=True)]
    device = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} core",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "phonenumbers", "python-stdnum")},
    }
    result = {"rows": options.rows, "planted of each": PLANTED, "device": device, "runs": runs}
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    kinds = list(runs[-1]["found"])
    columns = ["lint", "CPU seconds", "MiB", *kinds]
    lines = []
    for run in runs:
        figures = [str(run["found"].get(kind, 0)) for kind in kinds]
        lines.append([run["lint"], f"{run['seconds']:.2f}", str(run["MiB"]), *figures])
    text = (
        f"# The lint of {options.rows:,} rows of {WORDS} words\n\n"
        f"`python -m benchmarks.lint --rows {options.rows}` on {device['machine']}, Python "
        f"{device['python']}; raw figures in lint.json. {PLANTED} were planted of each kind. The "
        f"lint at the start of a run looks at a quarter of the rows, so it finds a sixteenth of "
        f"the pairs.\n\n{markdown(columns, lines)}\n"
    )
    options.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
