"""The keys of `adapter` in a recipe's config that AdaLoRA takes. Imports nothing heavy."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from peftkit.config.keys import section
from peftkit.methods.settings import AdapterSettings


@section
class Settings(AdapterSettings):
    """AdaLoRA (arXiv:2303.10512); the names are those of peft.AdaLoraConfig."""

    merges: ClassVar[bool] = True
    why_not_sharded: ClassVar[str | None] = (
        "AdaLoRA ranks whole triplets and cannot see them in the shards of FSDP; use "
        "the launch preset ddp, or one process"
    )

    method: Literal["adalora"] = "adalora"
    init_r: PositiveInt = 12
    """Rank that every layer starts with."""
    target_r: PositiveInt = 8
    """Mean rank of the layers at the end."""
    tinit: NonNegativeInt = 0
    """Steps before the budget begins to fall."""
    tfinal: NonNegativeInt = 0
    """Steps at the end with the final budget."""
    deltaT: PositiveInt = 1  # noqa: N815 -- PEFT's name
    """Steps from one allocation to the next."""
    lora_alpha: float = 32
    """Scale: the update is multiplied by lora_alpha / init_r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    orth_reg_weight: NonNegativeFloat = 0.1
    """Weight of the penalty that keeps singular vectors orthogonal."""
    total_step: PositiveInt = 1_000_000
    """Overwritten with the length of the run."""
