"""The keys of `adapter` in a recipe's config that a bottleneck takes. Imports nothing heavy."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from peftkit.config.keys import section
from peftkit.methods.settings import AdapterSettings


@section
class Settings(AdapterSettings):
    """Bottleneck adapters; the names are those of peftkit.BottleneckConfig."""

    method: Literal["bottleneck"] = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel", "scaled_parallel"] = "pfeiffer"
    """After every sublayer (arXiv:1902.00751), after the block (arXiv:2005.00052), or beside the
    feed-forward layer.
    """
    reduction_factor: PositiveFloat = 16.0
    """Width of the model over the width of the bottleneck."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's output."""
