"""The keys of `adapter` in a recipe's config that IA3 takes. Imports nothing heavy."""

from typing import ClassVar, Literal

from peftkit.config.keys import section
from peftkit.methods.settings import AdapterSettings


@section
class Settings(AdapterSettings):
    """IA3 (arXiv:2205.05638); the names are those of peft.IA3Config."""

    merges: ClassVar[bool] = True

    method: Literal["ia3"] = "ia3"
    target_modules: list[str] | None = None
    """Layers to scale, by the ends of their names; null is keys, values and feed-forward layers."""
    feedforward_modules: list[str] | None = None
    """Those of target_modules whose input is scaled instead of their output."""
