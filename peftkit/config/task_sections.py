"""The sections that recipes for classes, tags and numbers add to a config. Imports nothing heavy,
so that `--help` is quick.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from peftkit.config.keys import section
from peftkit.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]


@section
class LossSettings:
    """What is minimised."""

    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    """Weight of each class by its label; those not named weigh 1. "balanced" weighs a class by 1 /
    (classes x its share).
    """
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label's probability that is spread over all classes (arXiv:1512.00567)."""
    focal_gamma: NonNegativeFloat = 0.0
    """Focal loss (arXiv:1708.02002): items the model has right with probability p count (1 -
    p)^gamma; 0 is cross-entropy.
    """
    r_drop: NonNegativeFloat = 0.0
    """Weight of the divergence of two passes with different dropout (arXiv:2106.14448); 0 makes one
    pass.
    """
    adversarial: Literal["fgm", "pgd"] | None = None
    """Learn from perturbed input embeddings as well: one step (arXiv:1605.07725) or several
    (arXiv:1706.06083).
    """
    adversarial_radius: PositiveFloat = 0.1
    """L2 norm of the perturbation of one example's embeddings, for pgd the largest; in the
    embeddings' own units.
    """
    adversarial_steps: PositiveInt = 3
    """Gradients that pgd takes to find a perturbation."""

    def __post_init__(self) -> None:
        if self.adversarial is None and self.adversarial_radius != 0.1:
            raise ConfigError(
                "loss.adversarial_radius does nothing without loss.adversarial: set that to fgm or pgd"
            )
        if self.adversarial != "pgd" and self.adversarial_steps != 3:
            raise ConfigError("loss.adversarial_steps does nothing unless loss.adversarial is pgd")


@section
class AugmentSettings:
    """Noisy copies of the training rows (arXiv:1901.11196, without synonyms), with their labels."""

    copies: NonNegativeInt = 0
    """Copies of each row, beside the row itself."""
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which each word is left out; one always stays."""
    swaps: Share = 0.0
    """Swaps of two neighbouring words, as a share of the words; at least one."""
    character_noise: Share = 0.0
    """Probability with which each letter is left out, doubled or swapped with the next."""
    function: str | None = None
    """package.module:name of a function from a text to a text or a list of texts, e.g.
    back-translation; noise follows it.
    """

    def __post_init__(self) -> None:
        noise = self.word_dropout or self.swaps or self.character_noise or self.function is not None
        if self.copies and not noise:
            raise ConfigError(
                "augment.copies would repeat the rows as they are: set augment.word_dropout, swaps, character_noise "
                "or function too"
            )
        if noise and not self.copies:
            raise ConfigError(
                "augment asks for noise and for no noisy copies: set augment.copies to 1 or more"
            )


@section
class TeacherSettings:
    """Learn from the probabilities of models trained before (arXiv:1503.02531), on unlabelled texts
    too.
    """

    runs: list[str] = field(default_factory=list)
    """Run directories; the mean of their models' probabilities teaches."""
    weight: Share = 0.5
    """Share of the teacher in the loss of a row that has a label; one without is learned from the
    teacher alone.
    """
    temperature: PositiveFloat = 1.0
    """Softens the probabilities of teacher and student; their divergence is multiplied by its
    square.
    """
    unlabelled: str | None = None
    """A data file of rows without labels, to learn from the teacher."""
    min_confidence: Share = 0.0
    """Unlabelled rows whose likeliest class has a lower probability are left out."""

    def __post_init__(self) -> None:
        if self.unlabelled is not None and not self.runs:
            raise ConfigError(
                "teacher.unlabelled needs a teacher: name run directories in teacher.runs"
            )
        if self.min_confidence and self.unlabelled is None:
            raise ConfigError("teacher.min_confidence does nothing without teacher.unlabelled")
        if self.runs and not self.weight and self.unlabelled is None:
            raise ConfigError(
                "teacher.weight 0 makes teacher.runs teach nothing: raise it, or set teacher.unlabelled"
            )
