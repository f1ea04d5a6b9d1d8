"""One fine-tuning run, whatever the task, from its config to its report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

import peftkit
from peftkit.adapters.attaching import attach
from peftkit.adapters.merging import save_merged
from peftkit.adapters.saving import load
from peftkit.backbones.loading import default_dtype
from peftkit.data.examples import largest_token, lengths_of
from peftkit.data.row_files import read_rows
from peftkit.data.rows import Row, Rows
from peftkit.errors import ConfigError, nearest
from peftkit.files import staged_directory, write_rows
from peftkit.lean import Lean
from peftkit.methods.adapter_section import DefaultSettings
from peftkit.metrics.measurement import Measurement
from peftkit.recording import summary
from peftkit.runs.cpu_processes import start_requested_processes
from peftkit.runs.directory import Run
from peftkit.runs.opening import Opened, open_run
from peftkit.runs.process import prepare_process
from peftkit.runs.recipes import recipes
from peftkit.runs.report import write_report
from peftkit.runs.teacher import add_teacher
from peftkit.runs.training_rows import read_training_rows
from peftkit.tasks.base import Task
from peftkit.training.accelerator import make_accelerator
from peftkit.training.callbacks import Callback
from peftkit.training.evaluation import evaluate
from peftkit.training.loop import Training
from peftkit.training.out_of_memory import explained
from peftkit.training.state import TrainingState


def finetune(make_task: Callable[[Any], Task], config: Any, recipe: Path) -> None:
    """Run a recipe from its config to its report; an interrupted run is resumed.

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
    run.begin(process_changes)
    run.say(f"set for this process: {', '.join(process_changes)}")
    set_seed(config.seed)

    finetuning = Finetuning(make_task(config), config, recipe, run)
    finetuning.open_start()
    finetuning.read_rows()
    finetuning.fit_task()
    finetuning.load_model()
    finetuning.encode_examples()
    finetuning.measure_before()
    finetuning.train()
    finetuning.save()
    finetuning.measure_after()
    if config.merge:
        finetuning.merge()
    finetuning.report()


class Finetuning:
    """The steps of one run, in the order in which `finetune` takes them."""

    rows: Rows
    held_out: Rows
    retained: Rows  # of the task that the model could do before
    model: PeftModel
    accelerator: Accelerator
    examples: Sequence[Any]
    held_out_examples: Sequence[Any]

    def __init__(self, task: Task, config: Any, recipe: Path, run: Run) -> None:
        self.task = task
        self.config = config
        self.recipe = recipe
        self.run = run
        self.start: Opened | None = None
        self.measured: dict[str, Measurement] = {}  # the report's columns: before, after, merged
        self.remarks: list[str] = []

    def open_start(self) -> None:
        """Open the run whose adapter is trained further, if the config names one."""
        if self.config.start is None:
            return
        self.start = open_run(self.config.start)
        _check_start(self.start, self.task, self.config)
        self.task.learned = self.start.task.learned

    def read_rows(self) -> None:
        """Read the rows to train on, and those to measure."""
        found = read_training_rows(self.task, self.config)
        self.rows, self.held_out, self.retained = found.training, found.held_out, found.retained
        for line in found.decided:
            self.run.say(line)
        if isinstance(self.config.data.evaluation, float) and self.run.is_main:
            write_rows(self.run.directory / "evaluation.jsonl", self.held_out)
        self.run.remember("rows", found.record())

    def fit_task(self) -> None:
        """Let the task learn from the rows what the model needs, such as its labels."""
        self.task.fit(self.rows)
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
        model, task = self.config.model, self.task
        with explained("load", self.config.train, quantization=model.quantization):
            backbone = peftkit.load_backbone(
                **model.arguments(), task=task.head, overrides=task.overrides()
            )
        with explained("attach", self.config.train, quantization=model.quantization):
            self.model = self.attach(backbone)
        self.run.say(summary(self.model))
        self.run.remember("model", peftkit.record(self.model))
        self.accelerator = make_accelerator(self.config.train, self.model, self.run.directory)
        self.run.start_trackers(self.accelerator)

    def attach(self, backbone: PreTrainedModel) -> PeftModel:
        """Return the backbone with a new adapter, or with the one to train further."""
        lean = Lean(**vars(self.config.lean))
        if self.start is None:
            return attach(backbone, self.config.adapter.build(), lean=lean)
        return load(backbone, self.start.adapter, trainable=True, lean=lean)

    def encode_examples(self) -> None:
        """Turn the rows into examples, and check that the model knows their tokens."""
        self.examples = self._examples(self._rows_to_learn(), self.config.data.train)
        self.held_out_examples = ()
        if self.held_out:
            self.held_out_examples = self._examples(self.held_out, self.config.data.evaluation)
        _check_tokens(self.model, self.examples)
        _check_tokens(self.model, self.held_out_examples)

    def _rows_to_learn(self) -> Rows:
        """Return the training rows, with noisy copies and a teacher's probabilities if asked for.

        They are made once and kept. A back-translator or another device would make other ones when
        the run is resumed.
        """
        teacher = getattr(self.config, "teacher", None)
        if teacher is None and getattr(self.config, "augment", None) is None:
            return self.rows
        path = self.run.directory / "training_rows.jsonl"
        is_kept = path.exists()
        self.accelerator.wait_for_everyone()  # all have looked before the first one writes
        if not is_kept:
            rows = self.task.augment(self.rows)
            if teacher is not None:
                rows = add_teacher(
                    self.task, rows, teacher, self.accelerator, batch_size=self._batch_size
                )
                self.run.say(f"with the teacher, {len(rows)} rows")
            if self.run.is_main:
                write_rows(path, rows)
            self.accelerator.wait_for_everyone()
        return read_rows(path)

    def _examples(self, rows: Sequence[Row], where: object) -> Sequence[Any]:
        examples = self.task.examples(rows)
        remarks = self.task.remarks() or f"{len(rows)} rows -> {len(examples)} examples"
        self.run.say(f"{where}: {remarks}")
        return examples

    def measure_before(self) -> None:
        """Measure the model before it learns, unless an earlier attempt has done so."""
        self.task.check(self.model)
        values = self.run.remembered("before")
        if values is None:
            values = self.run.remember("before", vars(self._measure(self.model)))
        before = Measurement(**values)
        self.run.say(f"before: {_spelled(before)}")
        best = self.config.train.best
        if self.held_out and best not in before.metrics:
            raise ConfigError(
                f"train.best is {best!r}, but this task is measured by "
                f"{', '.join(before.metrics)}{nearest(best, before.metrics)}"
            )
        self.measured["before"] = before

    def train(self) -> None:
        """Train to the end, or to a signal, which ends the program."""
        best = self.config.train.best
        measures_outputs = self.task.is_quick_to_measure or best not in ("loss", "perplexity")
        training = Training(
            self.model,
            self.examples,
            self.task.collate,
            self.config.train,
            self.run.directory,
            self.accelerator,
            evaluation=self.held_out_examples,
            loss=self.task.loss,
            seed=self.config.seed,
            callbacks=[_HeldOutMetrics(self)] if measures_outputs else [],
        )
        self.run.exit_if_interrupted(training.run())

    @property
    def adapter_directory(self) -> Path:
        """Where the trained adapter goes."""
        return self.run.directory / "adapter"

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
        after = self._measure(self.model, calibrate=True)
        self.run.remember("after", vars(after))
        self.run.say(f"after: {_spelled(after)}")
        self.measured["after"] = after
        if not self.held_out:
            self.remarks.append("Measured on the training rows: none were held out.")
        threshold = self.task.learned.get("threshold")
        if threshold is not None:
            self.remarks.append(
                f"The threshold, {threshold:.3f}, was chosen on the rows that are measured."
            )

    def merge(self) -> None:
        """Merge the adapter into the backbone, measure the result, and save it."""
        merged = peftkit.merge(self.model, self._merged_dtype())
        self.measured["merged"] = self._measure(merged)
        self.remarks.append(f"{summary(merged)}.")
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
            rows = self.task.measured_rows(self.held_out or self.rows)
            path = write_report(
                self.run.directory,
                f"{self.config.model.source} on {self.config.data.train}",
                self.measured,
                self._sample(self.task.shown(rows)),
                remarks=self.remarks,
            )
            self.run.say(f"the adapter is in {self.adapter_directory}, the report in {path}")
        self.accelerator.end_training()

    def _measure(self, model: nn.Module, *, calibrate: bool = False) -> Measurement:
        """Return loss and metrics on the held-out rows, and on those of the old task.

        Without held-out rows, the training rows are measured.
        """
        rows = self.held_out or self.rows
        quantization = self.config.model.quantization
        with explained("evaluation", self.config.train, quantization=quantization):
            found = self.measure_outputs(model, rows, calibrate=calibrate)
            examples = self.held_out_examples or self.task.examples(rows)
            metrics = self._loss(model, examples) | found.metrics
            if self.retained:
                retained = self._loss(model, self.task.examples(self.retained))
                retained |= self.measure_outputs(model, self.retained).metrics
                metrics |= {f"retained {name}": value for name, value in retained.items()}
        return dataclasses.replace(found, metrics=metrics)

    def measure_outputs(
        self, model: nn.Module, rows: Sequence[Row], *, calibrate: bool = False
    ) -> Measurement:
        """Return how good the model's outputs are, without the loss.

        Args:
            model: With or without an adapter.
            rows: Rows with what is to be predicted.
            calibrate: First let the task learn from these outputs, such as a threshold.
        """
        rows = self.task.measured_rows(rows)
        outputs = self.task.outputs(model, rows, self.accelerator, batch_size=self._batch_size)
        if calibrate:
            self.task.calibrate(rows, outputs)
            self._remember_task()
        found = self.task.measure(rows, outputs)
        return dataclasses.replace(found, predictions=self._sample(found.predictions))

    def _loss(self, model: nn.Module, examples: Sequence[Any]) -> dict[str, float]:
        return evaluate(
            model,
            examples,
            self.task.collate,
            self.accelerator,
            batch_size=self._batch_size,
            loss=self.task.loss,
        )

    @property
    def _batch_size(self) -> int:
        train = self.config.train
        return int(train.evaluation_batch_size or train.batch_size)

    def _sample(self, items: Sequence[Any]) -> list[Any]:
        """Return as many items as the report shows, evenly spread."""
        count = self.config.samples
        if count == 0:
            return []
        every = max(1, len(items) // count)
        return list(items[::every][:count])


class _HeldOutMetrics(Callback):
    """Measures the model's outputs on the held-out rows at each evaluation."""

    def __init__(self, finetuning: Finetuning) -> None:
        self._finetuning = finetuning

    def measure(self, state: TrainingState) -> Mapping[str, float]:
        """Return the task's metrics."""
        return self._finetuning.measure_outputs(state.model, self._finetuning.held_out).metrics


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


def _check_tokens(model: nn.Module, examples: Sequence[Any]) -> None:
    """Check that the model has an embedding for each token and for each position.

    Raises:
        ConfigError: names the largest token, or the longest text.
    """
    largest = largest_token(examples)
    longest = int(lengths_of(examples).max(initial=0)) if largest >= 0 else 0
    positions = _position_count(model)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"a text has {longest} tokens, and the model knows {positions} positions: lower "
            "data.max_length"
        )
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    vocabulary = getattr(embeddings, "num_embeddings", None)
    if vocabulary is not None and largest >= vocabulary:
        raise ConfigError(
            f"the tokenizer gives the token {largest}, and the model has embeddings for "
            f"{vocabulary}: they do not belong together, or tokens were added and the embeddings "
            "not enlarged and trained"
        )


def _position_count(model: nn.Module) -> int | None:
    """Return for how many positions the model has learned embeddings, or None if it has none."""
    counts = []
    for name, module in model.named_modules():
        is_positional = name.rpartition(".")[2] in ("position_embeddings", "wpe")
        if isinstance(module, nn.Embedding) and is_positional:
            counts.append(module.num_embeddings)
    return min(counts, default=None)


def _spelled(measured: Measurement) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measured.metrics.items())
