"""A run's metrics, in ``metrics.jsonl`` and in Accelerate's trackers."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from peftkit.files import write_file
from peftkit.methods.method import MethodTraining


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, written by the main process, and the same numbers
    to the trackers.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self._path = path
        self._accelerator = accelerator

    def start(self, step: int) -> None:
        """Drop the lines after `step`, which a resumed run will write anew, and a line that a crash
        has cut.
        """
        if self._accelerator.is_main_process:
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Append one line; `kind` is "train", "evaluation" or "auto_batch"."""
        self._append({"step": step, "kind": kind, **values})
        if self._accelerator.trackers:
            self._accelerator.log(
                {f"{kind}/{name}": value for name, value in values.items()}, step=step
            )

    def write_of_method(self, step: int, method: MethodTraining) -> None:
        """Append what the method has to say about a step, such as the ranks of AdaLoRA's layers.

        Trackers, which take numbers, do not get it.
        """
        line = method.logged(step)
        if line is not None:
            self._append({"step": step, **line})

    def _append(self, line: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a ``metrics.jsonl``; an empty list where there is none."""
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
