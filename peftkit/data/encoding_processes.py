"""Several processes that share out the rows of a file, with a progress bar over all of them."""

import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from peftkit.errors import DataError

Write = Callable[[range, Path, Callable[[int], None]], dict[str, int]]
"""Writes what belongs to a range of rows to a file; tells how many rows it has done."""

_ROWS_OF_A_PROCESS = 2000  # fewer are not worth its start


def in_processes(write: Write, rows: int, directory: Path, name: str) -> list[dict[str, int]]:
    """Let processes write a file each for their share of the rows; return what they return.

    The processes are forks: they inherit `write` and all that it refers to. Where the system cannot
    fork without harm, one process does all. A process whose parent is gone ends itself.

    Args:
        write: What each of them does.
        rows: How many rows there are.
        directory: Takes the files, which sort in the order of the rows.
        name: What the progress bar calls the rows; it appears after a second.

    Raises:
        DataError: what the process with the first rows of all that failed has raised.
    """
    count = max(1, min(_processes(), rows // _ROWS_OF_A_PROCESS))
    shares = []
    for number in range(count):
        numbers = range(rows * number // count, rows * (number + 1) // count)
        shares.append((numbers, directory / f"part-{number:04}.arrow"))
    with tqdm(total=rows, desc=name, unit=" rows", delay=1, file=sys.stderr) as bar:
        if count == 1:
            return [write(*shares[0], bar.update)]
        return _Crew(write, shares, bar.update).run()


def _processes() -> int:
    """Return how many processes may encode at the same time."""
    if not sys.platform.startswith("linux"):
        return 1
    return len(os.sched_getaffinity(0))


class _Crew:
    """The processes, and what they report."""

    def __init__(
        self, write: Write, shares: list[tuple[range, Path]], advance: Callable[[int], Any]
    ) -> None:
        self._write = write
        self._advance = advance
        self._parent = os.getpid()
        self._processes = []
        self._reports: list[Connection] = []
        context = multiprocessing.get_context("fork")
        for numbers, file in shares:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=self._work, args=(numbers, file, theirs), daemon=True)
            with warnings.catch_warnings():  # Python 3.12 warns of threads, which write nothing
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._processes.append(process)
            self._reports.append(ours)

    def _work(self, numbers: range, file: Path, report: Connection) -> None:
        """Write one file, and report each batch, then the result or the error."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the rest
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism

        def advance(count: int) -> None:
            if os.getppid() != self._parent:
                os._exit(1)
            report.send(count)

        try:
            result: Any = self._write(numbers, file, advance)
        except Exception as problem:
            result = problem
        try:
            report.send(result)
        except (pickle.PicklingError, TypeError, AttributeError):
            report.send(DataError(f"{type(result).__name__}: {result}"))
        os._exit(0)

    def run(self) -> list[dict[str, int]]:
        """Wait for the processes; after an error, only for those with earlier rows."""
        results: dict[int, Any] = {}
        waiting = dict(enumerate(self._reports))
        try:
            while waiting:
                for ready in wait(list(waiting.values())):
                    number = self._reports.index(ready)  # type: ignore[arg-type]
                    self._take(number, results)
                    if number in results:
                        waiting.pop(number, None)  # after an error, it may be out already
                        if isinstance(results[number], Exception):
                            waiting = {key: each for key, each in waiting.items() if key < number}
        finally:
            for process in self._processes:
                process.kill()
                process.join()
        found = []
        for number in sorted(results):
            if isinstance(results[number], Exception):
                raise results[number]
            found.append(results[number])
        return found

    def _take(self, number: int, results: dict[int, Any]) -> None:
        """Take one report of a process: rows that it has done, or its result."""
        try:
            report = self._reports[number].recv()
        except EOFError:
            report = DataError(
                "a process that encodes rows was killed, perhaps for lack of memory; start again, "
                "on fewer cores if need be"
            )
        if isinstance(report, int):
            self._advance(report)
        else:
            results[number] = report
