"""The process of one trial: started, watched, and stopped so that it can be resumed later."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.training.metrics_log import read_metrics

_POLL_SECONDS = 0.5
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
_ERRORS_OF_THE_LAUNCHER = ("subprocess.CalledProcessError", "torch.distributed.elastic")


def run(
    command: Sequence[str],
    directory: Path,
    log: Path,
    *,
    is_hopeless: Callable[[Sequence[Mapping[str, Any]]], bool],
    started: Callable[[int], None],
) -> int | None:
    """Run a recipe to its end and return its exit code; None if it was stopped as hopeless.

    Args:
        command: The command line.
        directory: The run's directory.
        log: What the process prints is appended to this file.
        is_hopeless: Called again and again with the evaluations so far, as metrics.jsonl has them.
        started: Called with the process id.

    Raises:
        BaseException: what ended the waiting, such as a KeyboardInterrupt, once the process has
            ended too.
    """
    since = time.time()
    with log.open("ab") as file:
        child = _start(command, file)
    try:
        started(child.pid)
        while child.poll() is None:
            if is_hopeless(read_evaluations(directory)):
                _stop(child, directory, since)
                return None
            time.sleep(_POLL_SECONDS)
    except BaseException:
        _stop(child, directory, since)
        raise
    return child.returncode


def read_evaluations(directory: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run so far."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [line for line in lines if line["kind"] == "evaluation"]


def _start(command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own, which a Ctrl-C does not reach.

    Its launcher inherits that SIGINT is ignored, so that only the recipe hears the one of `_stop`.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(child: subprocess.Popen[bytes], directory: Path, since: float) -> None:
    """Let a run save its state, and wait until it has ended.

    A run that has not begun is ended at once; so is any run at a second Ctrl-C.
    """
    begun = directory / "environment.json"  # written once the recipe listens to signals
    has_begun = begun.exists() and begun.stat().st_mtime >= since - 1
    try:
        _send(child, signal.SIGINT if has_begun else signal.SIGTERM)
        child.wait()
    except BaseException:
        _send(child, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        child.wait()
        raise


def _send(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the process and all that it started."""
    if child.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(child.pid, number)
    else:
        child.terminate()


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error; without one, the last line."""
    if not log.exists():
        return "it printed nothing"
    last_line, last_error_line = "it printed nothing", None
    for text in log.read_text("utf-8", errors="replace").splitlines():
        line = text.strip()
        if not line or line.startswith(_ERRORS_OF_THE_LAUNCHER):
            continue
        last_line = line
        if _ERROR.match(line):
            last_error_line = line
    return last_error_line or last_line
