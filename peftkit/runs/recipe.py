"""What every recipe's config has, and how a recipe starts.

It imports nothing heavy, so that `--help` is quick.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import NonNegativeInt

from peftkit.config.help import help_text
from peftkit.config.keys import section
from peftkit.config.reading import read
from peftkit.config.sections import LeanSettings, ModelSettings, RowSettings
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError, PeftkitError
from peftkit.internals.bitsandbytes_messages import quiet_bitsandbytes
from peftkit.methods.adapter_section import Adapter, DefaultSettings
from peftkit.training.launch_checks import check_launch

if TYPE_CHECKING:
    from peftkit.tasks.base import Task

T = TypeVar("T")

WITHOUT_CONFIG = {
    "data": {"evaluation": 0.1},
    "train": {"epochs": 3, "evaluate_every": 0.5},
}
"""What is set before the command line where no config is named.

A tenth of the rows is held out and measured twice an epoch; the weights of the best evaluation are
kept. Everything else has the defaults that the help shows: LoRA of rank 16 on all linear layers, a
backbone in 16 bits, 8 rows a step.
"""


@section
class RecipeSettings:
    """What every recipe's config has."""

    model: ModelSettings
    data: RowSettings
    adapter: Adapter = field(default_factory=DefaultSettings)
    """The tuning method, with its own keys."""
    train: TrainSettings = field(default_factory=TrainSettings)
    lean: LeanSettings = field(default_factory=LeanSettings)
    run_dir: str | None = None
    """The directory for the adapter, the report, the metrics and the checkpoints; null is
    runs/RECIPE-DATA, such as runs/chat-dialogues for dialogues.jsonl.
    """
    start: str | None = None
    """A run whose adapter is trained further, on other rows; null starts a new adapter."""
    seed: NonNegativeInt = 0
    """Seed of the new adapter, of dropout, of randomly chosen rows and of the order of examples."""
    samples: NonNegativeInt = 12
    """How many predictions the report shows."""
    merge: bool = False
    """Also write the backbone with the adapter merged into it, unquantised, in model.dtype; for
    methods that change weights, like LoRA.
    """

    def __post_init__(self) -> None:
        adapter, method = self.adapter, self.adapter.method
        if self.train.evaluate_every is not None and self.data.evaluation is None:
            raise ValueError("train.evaluate_every needs held-out rows: set data.evaluation")
        if self.merge and not adapter.merges:
            raise ValueError(
                f"merge folds an adapter into the weights, which adapter.method {method} cannot "
                "do: leave merge out, or choose another method"
            )
        if self.data.streaming and self.train.max_steps is None:
            raise ValueError(
                "data.streaming reads as many rows as the steps need: set train.max_steps"
            )
        if self.data.streaming and getattr(self.data, "packing", False) is True:
            raise ValueError(
                "data.streaming counts rows, and data.packing: true puts several into a sequence: "
                "set data.packing: batch, or leave one of them out"
            )
        if getattr(self.data, "packing", False) and adapter.why_not_packed is not None:
            raise ValueError(
                f"data.packing cannot be used with adapter.method {method}: "
                f"{adapter.why_not_packed}"
            )
        if getattr(self.data, "packing", False) is True and self.train.curriculum is not None:
            raise ValueError(
                "train.curriculum goes from short to long examples, and data.packing: true makes "
                "all of them equally long: set data.packing: batch, or leave one of them out"
            )
        check_launch(self.train, self.model.quantization, adapter.why_not_sharded)


def parse(kind: type[T], words: Sequence[str], program: str) -> T:
    """Return the config that a command line asks for, or end the program.

    It ends with 0 after ``--help``, and with 2 after every mistake has been printed.

    Args:
        kind: The recipe's config.
        words: The command line: ``--config FILE`` and ``--KEY VALUE``.
        program: How the recipe is called, for the help.
    """
    if "--help" in words or "-h" in words:
        print(help_text(kind, program, WITHOUT_CONFIG), end="")
        raise SystemExit(0)
    try:
        return read(kind, words, WITHOUT_CONFIG)
    except ConfigError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(2) from None


def with_run_dir(config: Any, recipe: str) -> Any:
    """Return a config of a recipe with a run_dir, the default one if it names none."""
    if config.run_dir is not None:
        return config
    return dataclasses.replace(config, run_dir=default_run_dir(recipe, config.data.train))


def default_run_dir(recipe: str, train: str | Sequence[str]) -> str:
    """Return the directory of a run whose config names none, such as ``runs/chat-dialogues``.

    Args:
        recipe: The name of the recipe.
        train: Its data: a file, a sample, or several.
    """
    first = train if isinstance(train, str) else train[0]
    name = first.removeprefix("sample:") if first.startswith("sample:") else Path(first).stem
    return f"runs/{recipe}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"


def run_recipe(task: Callable[[Any], "Task"], kind: type[Any]) -> None:
    """Train what the command line asks for; this is the main program of a recipe.

    It ends with exit code 2 and a sentence after a mistake that the user has to correct, and with
    130 after a Ctrl-C before or after the training.

    Args:
        task: Makes the task of a config.
        kind: The recipe's config, a `RecipeSettings`.
    """
    script = Path(sys.argv[0]).resolve()
    config = parse(kind, sys.argv[1:], f"accelerate launch {sys.argv[0]}")
    config = with_run_dir(config, script.stem)
    try:
        with quiet_bitsandbytes():
            from peftkit.runs.finetune import finetune

            finetune(task, config, script)
    except PeftkitError as problem:
        print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
        raise SystemExit(2) from problem
    except KeyboardInterrupt:  # while it trains, the loop takes the signal itself
        print(
            f"interrupted; the same command goes on with what is saved in {config.run_dir}",
            file=sys.stderr,
        )
        raise SystemExit(130) from None  # 128 plus the number of SIGINT
