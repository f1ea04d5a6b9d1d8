"""One fine-tuning run, whatever the task, from its config to its report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from peft import PeftModel
from transformers import PreTrainedModel

import peftkit
from peftkit.adapters.attaching import attach
from peftkit.adapters.merging import save_merged
from peftkit.adapters.saving import load
from peftkit.backbones.loading import default_dtype
from peftkit.data.preview.contents import Preview
from peftkit.data.rows import Rows
from peftkit.data.watched_rows import WatchedRows
from peftkit.errors import ConfigError, DataError, nearest
from peftkit.files import staged_directory, write_rows
from peftkit.lean import Lean
from peftkit.methods.adapter_section import DefaultSettings
from peftkit.metrics.measurement import Measurement
from peftkit.recording import summary
from peftkit.runs.cpu_processes import start_requested_processes
from peftkit.runs.data_preview import preview_examples, write_page
from peftkit.runs.directory import Run
from peftkit.runs.frozen_config import ADAPTER, describe_finished
from peftkit.runs.kept_rows import keep_rows
from peftkit.runs.measuring import HeldOutMetrics, MeasuredRows, Measuring, sample_of_training
from peftkit.runs.needed_rows import Needed, encode_needed
from peftkit.runs.opening import Opened, open_run
from peftkit.runs.process import prepare_process
from peftkit.runs.recipes import recipes
from peftkit.runs.report import DATA_PAGE, write_report
from peftkit.runs.teacher import add_teacher
from peftkit.runs.training_rows import read_training_rows
from peftkit.tasks.base import Task
from peftkit.training.accelerator import make_accelerator
from peftkit.training.loop import Training
from peftkit.training.out_of_memory import explained
from peftkit.training.token_checks import check_tokens

_SHOWN_EXAMPLES = 20  # in the page of the run


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
    finetuning.read_rows()
    finetuning.fit_task()
    finetuning.encode_examples()
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

    rows: Rows
    held_out: Rows
    retained: Rows  # of the task that the model could do before
    needed: Needed  # the examples to learn from
    preview: Preview  # of these examples; in the main process alone
    measured: MeasuredRows
    retained_examples: Sequence[Any] = ()
    model: PeftModel
    accelerator: Accelerator
    measuring: Measuring

    def __init__(self, task: Task, config: Any, recipe: Path, run: Run) -> None:
        self.task = task
        self.config = config
        self.recipe = recipe
        self.run = run
        self.start: Opened | None = None
        self.columns: dict[str, Measurement] = {}  # of the report: before, after, merged
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
            held_out = self._watched(self.held_out, "keeping the held-out rows")
            write_rows(self.run.directory / "evaluation.jsonl", held_out)
        self.run.remember("rows", found.record())

    def fit_task(self) -> None:
        """Let the task learn from the rows what the model needs, such as its labels."""
        self.task.fit(self._watched(self.rows, "reading labels"))
        for note in self.task.notes:
            self.run.say(f"note: {note}")
        self._remember_task()

    def _watched(self, rows: Rows, what: str) -> Rows:
        return WatchedRows(rows, what, is_shown=self.run.is_main)

    def _remember_task(self) -> None:
        self.run.remember("task", {"recipe": self._recipe_name(), "learned": self.task.learned})

    def _recipe_name(self) -> str:
        """Return the name of one of peftkit's recipes, and the path of any other."""
        name = self.recipe.stem
        known = recipes().get(name)
        if known is not None and known.resolve() == self.recipe:
            return name
        return str(self.recipe)

    def encode_examples(self) -> None:
        """Turn the rows into examples: no more of them than the steps need."""
        rows = self._rows_to_learn()
        self.needed = encode_needed(
            rows,
            self._needed_examples(),
            self.config.seed,
            lambda drawn: self._encode(drawn, self.config.data.train),
        )
        if self.run.is_main:
            self._preview(len(rows))
        if self.config.data.lint and self.run.is_main:
            self._lint()
        if self.needed.share < 1:
            self._remark(
                f"train.max_steps needs {len(self.needed.rows):,} of the {len(rows):,} rows: "
                "they are drawn at random."
            )
        self.measured = self._encode_measured()
        if self.retained:
            self.retained_examples = self._encode(self.retained, self.config.data.retention)

    def _preview(self, rows: int) -> None:
        """Show some of the examples that were made last, of so many rows, in a page of the run."""
        self.preview = preview_examples(
            self.task,
            self.config,
            self.needed.rows,
            self.needed.examples,
            self._title,
            count=_SHOWN_EXAMPLES,
            of=rows,
        )
        path = self.run.directory / DATA_PAGE
        write_page(self.preview, path)
        self.run.say(f"what is learned, token by token: {path}")

    @property
    def _title(self) -> str:
        return f"{self.config.model.source} on {self.config.data.train}"

    def _lint(self) -> None:
        """Say what is likely not meant in the rows, and put it into the report.

        Cut answers are those of the training rows, whose examples were the last to be made.
        """
        found = self.task.lint(self.rows, self.held_out, thorough=False)
        self.run.say(str(found))
        for finding in found.findings:
            self.remarks.append(f"Lint: {finding.sentence}.")

    def _needed_examples(self) -> int | None:
        """Return how many examples all steps take, if the config says how many steps there are."""
        train = self.config.train
        if train.max_steps is None:
            return None
        step = train.batch_size * train.accumulate * PartialState().num_processes
        return int(train.max_steps * step)

    def _rows_to_learn(self) -> Rows:
        """Return the training rows, with noisy copies and a teacher's probabilities if asked for.

        These are made once and kept.
        """
        rows, directory = self.rows, self.run.directory
        teacher = getattr(self.config, "teacher", None)
        if getattr(self.config, "augment", None) is not None:
            plain = rows
            rows = keep_rows(directory / "augmented_rows.jsonl", lambda: self.task.augment(plain))
        if teacher is not None:
            labelled, size = rows, self._batch_size
            rows = keep_rows(
                directory / "training_rows.jsonl",
                lambda: add_teacher(self.task, labelled, teacher, batch_size=size),
            )
            self.run.say(f"with the teacher, {len(rows):,} rows")
        return rows

    def _encode(self, rows: Rows, where: object) -> Sequence[Any]:
        examples = self.task.examples(rows)
        remarks = self.task.remarks() or f"{len(rows):,} rows -> {len(examples):,} examples"
        self.run.say(f"{where}: {remarks}")
        if not examples:
            raise DataError(f"{where}: none of the {len(rows):,} rows gives an example")
        return examples

    def _encode_measured(self) -> MeasuredRows:
        """Return the rows to measure: the held-out ones, or else a few of the training rows."""
        if self.held_out:
            examples = self._encode(self.held_out, self.config.data.evaluation)
            return MeasuredRows(self.held_out, examples)
        rows = sample_of_training(self.rows)
        share = f"{len(rows)} of the {len(self.rows):,}" if len(rows) < len(self.rows) else "the"
        self._remark(f"Measured on {share} training rows: none were held out.")
        if rows is self.needed.rows:
            return MeasuredRows(rows, self.needed.examples)
        return MeasuredRows(rows, self.task.examples(rows))

    def _remark(self, sentence: str) -> None:
        """Say a sentence, and put it into the report."""
        self.run.say(sentence)
        self.remarks.append(sentence)

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
        check_tokens(self.model, task, self.needed.rows, self.needed.examples)
        check_tokens(self.model, task, Rows.of(self.measured.rows), self.measured.examples)
        self.accelerator = make_accelerator(self.config.train, self.model, self.run.directory)
        self.run.start_trackers(self.accelerator)
        self.measuring = Measuring(
            task,
            self.config,
            self.measured,
            MeasuredRows(self.retained, self.retained_examples),
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
        if self.held_out and best not in before.metrics:
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
            self.needed.examples,
            self.task.collate,
            self.config.train,
            self.run.directory,
            self.accelerator,
            evaluation=self.measured.examples if self.held_out else (),
            loss=self.task.loss,
            seed=self.config.seed,
            callbacks=[HeldOutMetrics(self.measuring)] if measures_outputs else [],
            share=self.needed.share,
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
            self.remarks.append(
                f"The threshold, {threshold:.3f}, was chosen on the rows that are measured."
            )

    def merge(self) -> None:
        """Merge the adapter into the backbone, measure the result, and save it."""
        merged = peftkit.merge(self.model, self._merged_dtype())
        self.columns["merged"] = self.measuring.measure(merged)
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
            path = write_report(
                self.run.directory,
                self._title,
                self.columns,
                self.measuring.shown(),
                remarks=self.remarks,
                preview=self.preview,
            )
            self.run.say(f"the adapter is in {self.adapter_directory}, the report in {path}")
        self.accelerator.end_training()

    @property
    def _batch_size(self) -> int:
        train = self.config.train
        return int(train.evaluation_batch_size or train.batch_size)


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
