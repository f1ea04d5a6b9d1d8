"""The keys of `adapter` in a recipe's config that LoRA takes. Imports nothing heavy."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from peftkit.config.keys import section
from peftkit.methods.settings import AdapterSettings


@section
class Settings(AdapterSettings):
    """LoRA (arXiv:2106.09685); the names are those of peft.LoraConfig."""

    merges: ClassVar[bool] = True

    method: Literal["lora"] = "lora"
    r: PositiveInt = 16
    """Rank of the update."""
    lora_alpha: float = 32
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Layers to adapt, by the ends of their names."""
