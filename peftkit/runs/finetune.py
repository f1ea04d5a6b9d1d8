"""One fine-tuning run, whatever the task, from its config to its report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from transformers import PreTrainedModel

import peftkit
from peftkit.adapters.attaching import attach
from peftkit.adapters.merging import save_merged
from peftkit.adapters.saving import load
from peftkit.backbones.loading import default_dtype
from peftkit.errors import ConfigError, nearest
from peftkit.files import staged_directory
from peftkit.lean import Lean
from peftkit.methods.adapter_section import DefaultSettings
from peftkit.metrics.measurement import Measurement
from peftkit.recording import summary
from peftkit.runs.cpu_processes import start_requested_processes
from peftkit.runs.directory import Run
from peftkit.runs.frozen_config import ADAPTER, describe_finished
from peftkit.runs.measuring import HeldOutMetrics, Measuring
from peftkit.runs.opening import Opened, open_run
from peftkit.runs.process import prepare_process
from peftkit.runs.recipes import recipes
from peftkit.runs.report import write_report
from peftkit.runs.run_data import RunData
from peftkit.tasks.base import Task
from peftkit.training.accelerator import make_accelerator
from peftkit.training.loop import Training
from peftkit.training.out_of_memory import explained
from peftkit.training.token_checks import check_tokens


def finetune(make_task: Callable[[Any], Task], config: Any, recipe: Path) -> None:
    """Run a recipe from its config to its report; an interrupted run is resumed.

    A run that is finished already is left as it is.

    ``config.run_dir`` then holds ``adapter/`` (a PEFT directory with the tokenizer), ``report.md``
    with its pictures, ``metrics.jsonl``, ``before.json`` and ``after.json``, the frozen config, and
    ``merged/`` if the config asks for it.

    Args:
        make_task: Makes the task of a config.
        config: A `peftkit.runs.recipe.RecipeSettings`.
        recipe: The recipe's file, by which `peftkit evaluate` and `peftkit predict` find it again.

    Raises:
        PeftkitError: whatever the user has to change.
        SystemExit: a signal stopped the training; its state is saved.
    """
    start_requested_processes()
    process_changes = prepare_process()
    run = Run(config)
    finished = describe_finished(config)
    if finished is not None:
        run.say(finished)
        return
    run.begin(process_changes)
    run.say(f"set for this process: {', '.join(process_changes)}")
    set_seed(config.seed)

    finetuning = Finetuning(make_task(config), config, recipe, run)
    finetuning.open_start()
    finetuning.data.read()
    finetuning.fit_task()
    finetuning.data.encode()
    finetuning.load_model()
    finetuning.measure_before()
    finetuning.train()
    finetuning.save()
    finetuning.measure_after()
    if config.merge:
        finetuning.merge()
    finetuning.report()


class Finetuning:
    """The steps of one run, in the order in which `finetune` takes them."""

    model: PeftModel
    accelerator: Accelerator
    measuring: Measuring

    def __init__(self, task: Task, config: Any, recipe: Path, run: Run) -> None:
        self.task = task
        self.config = config
        self.recipe = recipe
        self.run = run
        self.data = RunData(task, config, run)
        self.start: Opened | None = None
        self.columns: dict[str, Measurement] = {}  # of the report: before, after, merged

    def open_start(self) -> None:
        """Open the run whose adapter is trained further, if the config names one."""
        if self.config.start is None:
            return
        self.start = open_run(self.config.start)
        _check_start(self.start, self.task, self.config)
        self.task.learned = self.start.task.learned

    def fit_task(self) -> None:
        """Let the task learn from the rows what the model needs, such as its labels."""
        self.data.fit()
        self._remember_task()

    def _remember_task(self) -> None:
        self.run.remember("task", {"recipe": self._recipe_name(), "learned": self.task.learned})

    def _recipe_name(self) -> str:
        """Return the name of one of peftkit's recipes, and the path of any other."""
        name = self.recipe.stem
        known = recipes().get(name)
        if known is not None and known.resolve() == self.recipe:
            return name
        return str(self.recipe)

    def load_model(self) -> None:
        """Load the backbone, attach the adapter, and set Accelerate up for both."""
        set_seed(self.config.seed)  # whatever the rows have drawn, the new weights are the same
        model, task = self.config.model, self.task
        with explained("load", self.config.train, quantization=model.quantization):
            backbone = peftkit.load_backbone(
                **model.arguments(), task=task.head, overrides=task.overrides()
            )
        with explained("attach", self.config.train, quantization=model.quantization):
            self.model = self.attach(backbone)
        self.run.say(summary(self.model))
        self.run.remember("model", peftkit.record(self.model))
        for encoded in (self.data.needed, self.data.measured, self.data.retained):
            check_tokens(self.model, task, encoded.rows, encoded.examples)
        self.accelerator = make_accelerator(self.config.train, self.model, self.run.directory)
        self.run.start_trackers(self.accelerator)
        self.measuring = Measuring(
            task,
            self.config,
            self.data.measured,
            self.data.retained,
            self.accelerator,
            self._remember_task,
        )

    def attach(self, backbone: PreTrainedModel) -> PeftModel:
        """Return the backbone with a new adapter, or with the one to train further."""
        lean = Lean(**vars(self.config.lean))
        if self.start is None:
            return attach(backbone, self.config.adapter.build(), lean=lean)
        return load(backbone, self.start.adapter, trainable=True, lean=lean)

    def measure_before(self) -> None:
        """Measure the model before it learns, unless an earlier attempt has done so."""
        self.task.check(self.model)
        values = self.run.remembered("before")
        if values is None:
            values = self.run.remember("before", vars(self.measuring.measure(self.model)))
        before = Measurement(**values)
        self.run.say(f"before: {_spelled(before)}")
        best = self.config.train.best
        if self.data.held_out and best not in before.metrics:
            raise ConfigError(
                f"train.best is {best!r}, but this task is measured by "
                f"{', '.join(before.metrics)}{nearest(best, before.metrics)}"
            )
        self.columns["before"] = before

    def train(self) -> None:
        """Train to the end, or to a signal, which ends the program."""
        best = self.config.train.best
        measures_outputs = self.task.is_quick_to_measure or best not in ("loss", "perplexity")
        training = Training(
            self.model,
            self.data.needed.examples,
            self.task.collate,
            self.config.train,
            self.run.directory,
            self.accelerator,
            evaluation=self.data.measured.examples if self.data.held_out else (),
            loss=self.task.loss,
            seed=self.config.seed,
            callbacks=[HeldOutMetrics(self.measuring)] if measures_outputs else [],
            share=self.data.needed.share,
        )
        self.run.exit_if_interrupted(training.run())

    @property
    def adapter_directory(self) -> Path:
        """Where the trained adapter goes."""
        return self.run.directory / ADAPTER

    def save(self) -> None:
        """Save the adapter, and beside it the tokenizer or processor."""
        self.run.remember("model", peftkit.record(self.model))  # with what the first step found out
        if self.run.is_main:
            peftkit.save(self.model, self.adapter_directory)
            with staged_directory(self.adapter_directory) as stage:
                self.task.processor.save_pretrained(stage)
        self.accelerator.wait_for_everyone()

    def measure_after(self) -> None:
        """Load what was saved, and measure that."""
        self.model = load(peftkit.detach(self.model), self.adapter_directory)
        after = self.measuring.measure(self.model, calibrate=True)
        self.run.remember("after", vars(after))
        self.run.say(f"after: {_spelled(after)}")
        self.columns["after"] = after
        threshold = self.task.learned.get("threshold")
        if threshold is not None:
            self.data.remarks.append(
                f"The threshold, {threshold:.3f}, was chosen on the rows that are measured."
            )

    def merge(self) -> None:
        """Merge the adapter into the backbone, measure the result, and save it."""
        merged = peftkit.merge(self.model, self._merged_dtype())
        self.columns["merged"] = self.measuring.measure(merged)
        self.data.remarks.append(f"{summary(merged)}.")
        if self.run.is_main:
            save_merged(merged, self.task.processor, self.run.directory / "merged")

    def _merged_dtype(self) -> torch.dtype:
        name = self.config.model.dtype
        if name == "auto":
            return default_dtype(self.accelerator.device)
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def report(self) -> None:
        """Write the report, and close the trackers."""
        if self.run.is_main:
            path = write_report(
                self.run.directory,
                self.data.title,
                self.columns,
                self.measuring.shown(),
                remarks=self.data.remarks,
                preview=self.data.preview,
            )
            self.run.say(f"the adapter is in {self.adapter_directory}, the report in {path}")
        self.accelerator.end_training()


def _check_start(start: Opened, task: Task, config: Any) -> None:
    """Check that an earlier run has this run's task and adapter, so that it can be trained further.

    Raises:
        ConfigError: says which of them differs.
    """
    if type(start.task) is not type(task) or start.task.head != task.head:
        raise ConfigError(
            f"start: {config.start} was made by another recipe, for {start.task.head}"
        )
    if config.merge and not start.config.adapter.merges:
        raise ConfigError(
            f"merge: the adapter of {config.start} is {start.config.adapter.method}, which cannot "
            "be folded into the weights"
        )
    if config.adapter not in (start.config.adapter, DefaultSettings()):
        raise ConfigError(
            f"start: the adapter of {config.start} is trained further as it is; leave `adapter` "
            "out, or write it as there"
        )


def _spelled(measured: Measurement) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measured.metrics.items())
