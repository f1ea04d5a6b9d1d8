"""A run's metrics, in ``metrics.jsonl`` and in Accelerate's trackers."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from peftkit.files import write_file
from peftkit.methods.method import MethodTraining


class MetricsLog:
    """Writes ``metrics.jsonl``, one JSON object a line, and the same numbers to the trackers.

    Only the main process writes.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self._path = path
        self._accelerator = accelerator

    def start(self, step: int) -> None:
        """Drop half a line, and the lines after `step`, which a resumed run writes again."""
        if not self._accelerator.is_main_process:
            return
        text = ""
        for line in read_metrics(self._path):
            if line["step"] <= step:
                text += json.dumps(line) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._path, text.encode())

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Append one line; `kind` is "train", "evaluation" or "auto_batch"."""
        self._append({"step": step, "kind": kind, **values})
        if self._accelerator.trackers:
            named = {f"{kind}/{name}": value for name, value in values.items()}
            self._accelerator.log(named, step=step)

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
    """Return the whole lines of a ``metrics.jsonl``; an empty list if there is no such file."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
