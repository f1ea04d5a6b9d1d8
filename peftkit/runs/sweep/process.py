"""The process of one trial: started, watched, and stopped so that it can go on later."""

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
_OF_THE_LAUNCHER = ("subprocess.CalledProcessError", "torch.distributed.elastic")


def run(
    command: Sequence[str],
    directory: Path,
    log: Path,
    *,
    is_hopeless: Callable[[Sequence[Mapping[str, Any]]], bool],
    started: Callable[[int], None],
) -> int | None:
    """Run a recipe to its end and return its exit code; None where it was stopped because it is
    hopeless.

    Args:
        command: The command line.
        directory: The run's directory.
        log: Takes what the process prints, after what is there.
        is_hopeless: Called again and again with the evaluations so far, as metrics.jsonl has them.
        started: Called with the number of the process.

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
            if is_hopeless(
                [
                    line
                    for line in read_metrics(directory / "metrics.jsonl")
                    if line["kind"] == "evaluation"
                ]
            ):
                _stop(child, directory, since)
                return None
            time.sleep(_POLL_SECONDS)
    except BaseException:
        _stop(child, directory, since)
        raise
    return child.returncode


def evaluations(directory: Path) -> list[dict[str, Any]]:
    """Return the evaluations so far of a run."""
    return [
        line for line in read_metrics(directory / "metrics.jsonl") if line["kind"] == "evaluation"
    ]


def _start(command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
    """Start the command in a group of its own, which no Ctrl-C reaches; its launcher is to ignore
    the signal of `_stop`.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(child: subprocess.Popen[bytes], directory: Path, since: float) -> None:
    """Let a run save its state and end, and wait for that; end at once what has not begun, or at a
    second Ctrl-C.
    """
    begun = directory / "environment.json"  # written when the recipe has begun to listen
    has_begun = begun.exists() and begun.stat().st_mtime >= since - 1
    try:
        _signal(child, signal.SIGINT if has_begun else signal.SIGTERM)
        child.wait()
    except BaseException:
        _signal(child, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        child.wait()
        raise


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if child.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(child.pid, number)
    else:
        child.terminate()


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, or else its last line."""
    lines = (
        [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
        if log.exists()
        else []
    )
    lines = [line for line in lines if line and not line.startswith(_OF_THE_LAUNCHER)]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it said nothing"])[-1]
