"""What every recipe's config has, and how a recipe starts. Imports nothing heavy, so that `--help`
is quick.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import NonNegativeInt

from peftkit.config.help import help_text
from peftkit.config.keys import section
from peftkit.config.reading import read
from peftkit.config.sections import Adapter, LeanSettings, LoraSettings, ModelSettings, RowSettings
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError, PeftkitError
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes
from peftkit.training.launch_checks import check_launch

if TYPE_CHECKING:
    from peftkit.tasks.base import Task

T = TypeVar("T")


@section
class RecipeSettings:
    """What every recipe's config has."""

    model: ModelSettings
    data: RowSettings
    adapter: Adapter = field(default_factory=LoraSettings)
    """The method, and what it trains."""
    train: TrainSettings = field(default_factory=TrainSettings)
    lean: LeanSettings = field(default_factory=LeanSettings)
    run_dir: str
    """Takes the adapter, the report, the metrics and the checkpoints."""
    start: str | None = None
    """A run whose adapter to train on, on other rows; null starts a new adapter."""
    seed: NonNegativeInt = 0
    """Seed of the adapter's start, of dropout, of random rows and of the order of the examples."""
    samples: NonNegativeInt = 12
    """Predictions to show in the report."""
    merge: bool = False
    """Also write the backbone with the adapter merged in, unquantised, in model.dtype; for LoRA and
    AdaLoRA.
    """

    def __post_init__(self) -> None:
        needs = [
            (
                "train.evaluate_every",
                self.train.evaluate_every is not None,
                self.data.evaluation is None,
            ),
            ("merge", self.merge, self.adapter.method not in ("lora", "adalora")),
            (
                "data.packing",
                bool(getattr(self.data, "packing", False)),
                self.adapter.method == "prefix",
            ),
        ]
        what = {
            "train.evaluate_every": "held-out rows: set data.evaluation",
            "merge": "adapter.method lora or adalora",
            "data.packing": "another adapter.method than prefix: a pack has one prefix, not one a text",
        }
        for key, is_asked, cannot in needs:
            if is_asked and cannot:
                raise ValueError(f"{key} needs {what[key]}")
        check_launch(self.train, self.model.quantization, self.adapter.method)


def parse(kind: type[T], words: Sequence[str], program: str) -> T:
    """Return the config that a command line asks for, or end the program.

    It ends with 0 after ``--help``, and with 2 after every mistake has been printed.

    Args:
        kind: The recipe's config.
        words: The command line: ``--config FILE`` and ``--KEY VALUE``.
        program: How the recipe is called, for the help.
    """
    if "--help" in words or "-h" in words:
        print(help_text(kind, program), end="")
        raise SystemExit(0)
    try:
        return read(kind, words)
    except ConfigError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(2) from None


def run_recipe(task: Callable[[Any], "Task"], kind: type[Any]) -> None:
    """Train what the command line asks for; a user's mistake ends the program with one sentence and
    exit code 2.

    Args:
        task: Makes the task of a config.
        kind: The recipe's config, a `RecipeSettings`.
    """
    config = parse(kind, sys.argv[1:], f"accelerate launch {sys.argv[0]}")
    try:
        with quiet_bitsandbytes():
            from peftkit.runs.finetune import finetune

            finetune(task, config, Path(sys.argv[0]).resolve())
    except PeftkitError as problem:
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        raise SystemExit(2) from problem
