"""What a model scored on some rows, and what it predicted."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The metrics of a model on some rows, with what a report shows beside them."""

    metrics: dict[str, float]
    """Each metric by its name."""
    predictions: list[str] = dataclasses.field(default_factory=list)
    """A prediction for each row that the report shows."""
    details: str = ""
    """A Markdown table, for example of the metrics of each class."""
    confusion: dict[str, Any] | None = None
    """``{"labels": [...], "counts": [[...], ...]}``, as `peftkit.metrics.classes.confusion` returns
    it.
    """
