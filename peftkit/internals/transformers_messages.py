"""A message of transformers 5 that is not true where an adapter brings the weights itself.

After loading, ``transformers.modeling_utils`` reports weights that the checkpoint lacks as MISSING
and newly initialised. The head of a finished run is such a weight, and the adapter holds it. If
another version names the logger otherwise, the message is seen again, and nothing else changes.
"""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_loading_report() -> Iterator[None]:
    """Hide transformers' report of missing weights for as long as this lasts."""

    def is_another_message(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_another_message)
    try:
        yield
    finally:
        logger.removeFilter(is_another_message)
