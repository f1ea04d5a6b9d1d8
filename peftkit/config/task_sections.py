"""The sections that recipes for classes, tags and numbers add to a config.

It imports nothing heavy, so that `--help` is quick.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from peftkit.config.keys import section
from peftkit.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]


@section
class LossSettings:
    """The loss that is minimised."""

    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    """Weight of each class, by its label; classes that are not named have weight 1. balanced is
    1 / (number of classes x share of the class).
    """
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the probability that is spread over all classes (arXiv:1512.00567)."""
    focal_gamma: NonNegativeFloat = 0.0
    """Focal loss (arXiv:1708.02002): the weight of an item whose label has probability p is
    (1 - p)^gamma; 0 is cross-entropy.
    """
    r_drop: NonNegativeFloat = 0.0
    """Weight of the divergence between two passes with different dropout (arXiv:2106.14448); 0
    makes one pass.
    """
    adversarial: Literal["fgm", "pgd"] | None = None
    """Train on perturbed input embeddings too: fgm takes one gradient step (arXiv:1605.07725), pgd
    several (arXiv:1706.06083).
    """
    adversarial_radius: PositiveFloat = 0.1
    """L2 norm of the perturbation of one example's embeddings; the largest norm for pgd."""
    adversarial_steps: PositiveInt = 3
    """Gradient steps that pgd takes to find a perturbation."""

    def __post_init__(self) -> None:
        if self.adversarial is None and self.adversarial_radius != 0.1:
            raise ConfigError(
                "loss.adversarial_radius does nothing without loss.adversarial: set that too"
            )
        if self.adversarial != "pgd" and self.adversarial_steps != 3:
            raise ConfigError("loss.adversarial_steps does nothing unless loss.adversarial is pgd")


@section
class AugmentSettings:
    """Noisy copies of the training rows, with their labels (arXiv:1901.11196, without synonyms)."""

    copies: NonNegativeInt = 0
    """Copies of each row, in addition to the row itself."""
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a word is left out; at least one word stays."""
    swaps: Share = 0.0
    """How often two neighbouring words are swapped, as a share of the words; at least once."""
    character_noise: Share = 0.0
    """Probability that a letter is left out, doubled, or swapped with the next one."""
    function: str | None = None
    """A function from a text to one or several texts, such as back-translation, as
    package.module:name; the noise is added to its result.
    """

    def __post_init__(self) -> None:
        noise = self.word_dropout or self.swaps or self.character_noise or self.function is not None
        if self.copies and not noise:
            raise ConfigError(
                "augment.copies would repeat the rows as they are: set augment.word_dropout, "
                "swaps, character_noise or function too"
            )
        if noise and not self.copies:
            raise ConfigError(
                "augment asks for noise but for no noisy copies: set augment.copies to 1 or more"
            )


@section
class TeacherSettings:
    """Train on the probabilities of finished runs (arXiv:1503.02531), for unlabelled rows too."""

    runs: list[str] = field(default_factory=list)
    """Directories of runs; the teacher is the mean of their probabilities."""
    weight: Share = 0.5
    """Share of the teacher in the loss of a row with a label; a row without one has only the
    teacher.
    """
    temperature: PositiveFloat = 1.0
    """Softens the probabilities of teacher and student; their divergence is multiplied by the
    square of the temperature.
    """
    unlabelled: str | None = None
    """A data file of rows without labels, for which the teacher's probabilities are learned."""
    min_confidence: Share = 0.0
    """Leave out unlabelled rows whose likeliest class has a lower probability."""

    def __post_init__(self) -> None:
        if self.unlabelled is not None and not self.runs:
            raise ConfigError(
                "teacher.unlabelled needs a teacher: name run directories in teacher.runs"
            )
        if self.min_confidence and self.unlabelled is None:
            raise ConfigError("teacher.min_confidence does nothing without teacher.unlabelled")
        if self.runs and not self.weight and self.unlabelled is None:
            raise ConfigError(
                "with teacher.weight 0, teacher.runs teach nothing: raise the weight, or set "
                "teacher.unlabelled"
            )
