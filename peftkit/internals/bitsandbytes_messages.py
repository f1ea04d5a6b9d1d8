"""Two messages of bitsandbytes 0.50 that say nothing a user could act on, hidden while we call it.

Imported on a CPU with AVX512-BF16, it warns that an optional package is missing, which peftkit does
not use (``backends/cpu/ops.py``). And at every int8 layer of every forward pass, it warns that
bfloat16 inputs are quantised by way of float16 (``autograd/_functions.py``). If another version
names its loggers otherwise, the messages are seen again, and nothing else changes.
"""

import contextlib
import logging
from collections.abc import Iterator

_LOGGERS = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")


@contextlib.contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """Hide bitsandbytes' warnings from two of its modules for as long as this lasts."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(is_error)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_error)
