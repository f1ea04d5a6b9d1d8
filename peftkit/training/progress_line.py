"""The line that shows how far a training is: step, time left, loss, speed and memory."""

import sys
import time

import psutil
import torch

_PLAIN_SECONDS = 10.0  # between two lines, where the output is no terminal
_WINDOW = 20  # steps that the shown loss and speed are taken over


class ProgressLine:
    """Step, time left, loss, learning rate, speed and memory.

    It is one line that moves on a terminal, and plain lines in a file.

    Args:
        total_steps: Optimizer steps of the whole training.
        enabled: False where another process shows it.
        unit: What the items are called.
    """

    def __init__(self, total_steps: int, enabled: bool, unit: str = "tokens") -> None:
        self._total = total_steps
        self._enabled = enabled
        self._unit = unit
        self._moves = sys.stderr.isatty()
        self._recent: list[tuple[float, float, float]] = []  # (seconds, loss, items) of a step
        self._printed = 0.0

    def show(self, step: int, entry: dict[str, float], seconds: float) -> None:
        """Show the state after a step that ended `seconds` into the training."""
        if not self._enabled:
            return
        self._recent = [*self._recent, (seconds, entry["loss"], entry["items"])][-_WINDOW:]
        now = time.monotonic()
        if self._moves:
            print(f"\r\033[K{self._text(step, entry)}", end="", file=sys.stderr, flush=True)
        elif now - self._printed >= _PLAIN_SECONDS or step >= self._total:
            self._printed = now
            print(self._text(step, entry), file=sys.stderr, flush=True)

    def _text(self, step: int, entry: dict[str, float]) -> str:
        loss, pace, speed = self._averages()
        left = time.strftime("%H:%M:%S", time.gmtime(pace * (self._total - step)))
        now, peak = memory_bytes()
        return (
            f"step {step}/{self._total}  left {left}  loss {loss:.4f}  "
            f"lr {entry['learning_rate']:.2e}  {speed:.0f} {self._unit}/s  "
            f"memory {now / 2**30:.2f} (peak {peak / 2**30:.2f}) GiB"
        )

    def _averages(self) -> tuple[float, float, float]:
        """Return loss per item, seconds per step and items per second, over the recent steps."""
        items = weighted_loss = 0.0
        for _, step_loss, step_items in self._recent:
            items += step_items
            weighted_loss += step_loss * step_items
        first_end, _, first_items = self._recent[0]
        span = self._recent[-1][0] - first_end  # from the end of the first step to that of the last
        pace = span / (len(self._recent) - 1) if len(self._recent) > 1 else first_end
        speed = (items - first_items) / span if span else items / max(pace, 1e-9)
        return weighted_loss / items, pace, speed

    def message(self, text: str) -> None:
        """Print a separate line."""
        if self._enabled:
            print(f"\r\033[K{text}" if self._moves else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the moving line."""
        if self._enabled and self._moves and self._recent:
            print(file=sys.stderr)


def memory_bytes() -> tuple[int, int]:
    """Return the bytes held now and at the peak, by the GPU or else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        return info.rss, info.peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return info.rss, peak if sys.platform == "darwin" else peak * 1024
