"""The line that shows how far a training is: step, time left, loss, speed and memory."""

import sys
import time

import psutil
import torch

_PLAIN_SECONDS = 10.0  # a line this often where nobody can see it move
_WINDOW = 20  # steps that the shown loss and speed are taken over


class ProgressLine:
    """Step, time left, loss, learning rate, speed and memory: one line that moves on a terminal,
    plain lines in a file.
    """

    def __init__(self, total_steps: int, enabled: bool, unit: str = "tokens") -> None:
        self._total = total_steps
        self._enabled = enabled
        self._unit = unit
        self._moves = sys.stderr.isatty()
        self._recent: list[tuple[float, float, float]] = []
        self._printed = 0.0

    def show(self, step: int, entry: dict[str, float], seconds: float) -> None:
        """Show the state after a step that ended `seconds` into the training."""
        if not self._enabled:
            return
        self._recent = [*self._recent, (seconds, entry["loss"], entry["items"])][-_WINDOW:]
        now = time.monotonic()
        if not self._moves and now - self._printed < _PLAIN_SECONDS and step < self._total:
            return
        self._printed = now
        text = self._text(step, entry)
        print(
            f"\r\033[K{text}" if self._moves else text,
            end="" if self._moves else "\n",
            file=sys.stderr,
            flush=True,
        )

    def _text(self, step: int, entry: dict[str, float]) -> str:
        items = sum(each for _, _, each in self._recent)
        loss = sum(loss * each for _, loss, each in self._recent) / items
        span = self._recent[-1][0] - self._recent[0][0]
        later = self._recent[1:]
        pace = span / len(later) if later else self._recent[0][0]
        speed = sum(each for _, _, each in later) / span if span else items / max(pace, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime(pace * (self._total - step)))
        now, peak = memory_bytes()
        return (
            f"step {step}/{self._total}  left {left}  loss {loss:.4f}  lr {entry['learning_rate']:.2e}  "
            f"{speed:.0f} {self._unit}/s  memory {now / 2**30:.2f} (peak {peak / 2**30:.2f}) GiB"
        )

    def message(self, text: str) -> None:
        """Print a line of its own."""
        if self._enabled:
            print(f"\r\033[K{text}" if self._moves else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the moving line."""
        if self._enabled and self._moves and self._recent:
            print(file=sys.stderr)


def memory_bytes() -> tuple[int, int]:
    """Return the memory held now and at the peak, in bytes: of the GPU where there is one, else of
    this process.
    """
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        return info.rss, info.peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return info.rss, peak if sys.platform == "darwin" else peak * 1024
