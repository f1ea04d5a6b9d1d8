"""The keys of `adapter` in a recipe's config that prefix tuning takes. Imports nothing heavy."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from peftkit.config.keys import section
from peftkit.methods.settings import AdapterSettings


@section
class Settings(AdapterSettings):
    """Prefix tuning (arXiv:2101.00190); the names are those of peftkit.PrefixConfig."""

    why_not_packed: ClassVar[str | None] = "a pack has one prefix, not one for each text"

    method: Literal["prefix"] = "prefix"
    num_virtual_tokens: PositiveInt = 30
    """Length of the prefix."""
    prefix_projection: bool = False
    """Learn keys and values by way of a two-layer network."""
