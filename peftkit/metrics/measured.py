"""What a model scored on some rows, and what it said."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measured:
    """Metrics by name; a prediction for each shown row; a table for the report; and the confusion
    of classes.

    `confusion` is ``{"labels": [...], "counts": [[...], ...]}``: a row for each true class, a
    column for each predicted one.
    """

    metrics: dict[str, float]
    predictions: list[str] = dataclasses.field(default_factory=list)
    details: str = ""
    confusion: dict[str, Any] | None = None
