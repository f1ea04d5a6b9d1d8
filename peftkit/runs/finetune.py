"""One fine-tuning run, whatever the task: rows, backbone, adapter, training, what was saved
measured again, a report.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

import peftkit
from peftkit.adapters.attaching import attach
from peftkit.adapters.merging import save_merged
from peftkit.adapters.saving import load
from peftkit.backbones.loading import default_dtype
from peftkit.config.sections import LoraSettings
from peftkit.data.held_out_split import split_held_out
from peftkit.data.replay import add_replay
from peftkit.data.row_files import Row
from peftkit.errors import ConfigError, nearest
from peftkit.files import staged_directory, write_rows
from peftkit.lean import Lean
from peftkit.metrics.measured import Measured
from peftkit.recording import summary
from peftkit.runs.directory import Run
from peftkit.runs.opening import Opened, open_run
from peftkit.runs.recipes import recipes
from peftkit.runs.report import write_report
from peftkit.runs.teacher import taught
from peftkit.tasks.base import Task
from peftkit.training.evaluation import evaluate
from peftkit.training.loop import Hooks, Training
from peftkit.training.optimizer import accelerator_for
from peftkit.training.out_of_memory import explained


def finetune(make_task: Callable[[Any], Task], config: Any, recipe: Path) -> None:
    """Run a recipe from its config to its report; an interrupted run goes on where it stopped.

    ``config.run_dir`` then holds ``adapter/`` (a PEFT directory with the tokenizer), ``report.md``
    with its pictures, ``metrics.jsonl``, ``before.json`` and ``after.json``, the frozen config, and
    ``merged/`` if the config asks for it.

    Args:
        make_task: Makes the task of a config.
        config: A `peftkit.runs.recipe.RecipeSettings`.
        recipe: The recipe's file, by which `peftkit evaluate` and `peftkit predict` find it again.

    Raises:
        PeftkitError: whatever the user has to change.
        SystemExit: a signal has stopped the training; its state is saved.
    """
    run = Run(config)
    finetuning = Finetuning(make_task(config), config, recipe, run)
    finetuning.train()
    finetuning.finish()


class Finetuning:
    """The parts of one run: made in `__init__`, trained in `train`, saved, measured and reported in
    `finish`.
    """

    def __init__(self, task: Task, config: Any, recipe: Path, run: Run) -> None:
        self.task, self.config, self.recipe, self.run = task, config, recipe, run
        start = None if config.start is None else open_run(config.start)
        if start is not None:
            _check_start(start, task, config)
            task.learned = start.task.learned
        self.rows, self.held_out = self._rows()
        self.retained = task.read(config.data.retention) if config.data.retention else []
        task.fit(self.rows)
        self._remember_task()
        quantization = config.model.quantization
        with explained("load", config.train, quantization=quantization):
            backbone = peftkit.load_backbone(
                **config.model.arguments(), task=task.head, overrides=task.overrides()
            )
        with explained("attach", config.train, quantization=quantization):
            self.model = self._adapted(backbone, start)
        run.say(summary(self.model))
        run.remember("model", peftkit.record(self.model))
        self.accelerator: Accelerator = accelerator_for(config.train, self.model, run.directory)
        run.start_trackers(self.accelerator)
        self.examples = self._examples(self._rows_to_learn(), config.data.train)
        self.held_out_examples = (
            self._examples(self.held_out, config.data.evaluation) if self.held_out else ()
        )
        _check_tokens(self.model, [*self.examples, *self.held_out_examples])

    def _adapted(self, backbone: PreTrainedModel, start: Opened | None) -> PeftModel:
        """Return the backbone with a new adapter, or with the one to train on."""
        lean = Lean(**vars(self.config.lean))
        if start is None:
            return attach(backbone, self.config.adapter.build(), lean=lean)
        return load(backbone, start.adapter, trainable=True, lean=lean)

    def _rows(self) -> tuple[list[Row], list[Row]]:
        """Return the rows to train on, with replayed ones and noisy copies, and those held out."""
        data, seed = self.config.data, self.config.seed
        rows = self.task.read(data.train)
        held_out: list[Row] = []
        if isinstance(data.evaluation, float):
            rows, held_out = split_held_out(rows, data.evaluation, seed)
            if self.run.is_main:
                write_rows(self.run.directory / "evaluation.jsonl", held_out)
        elif data.evaluation is not None:
            held_out = self.task.read(data.evaluation)
        if data.replay is not None:
            rows = add_replay(rows, self.task.read(data.replay.train), data.replay.share, seed)
        return rows, held_out

    def _rows_to_learn(self) -> list[Row]:
        """Return the rows to train on with noisy copies and a teacher's probabilities, where the
        config asks for them.

        They are made once, and kept: a back-translator or another device would make others when the
        run goes on.
        """
        teacher = getattr(self.config, "teacher", None)
        if teacher is None and getattr(self.config, "augment", None) is None:
            return self.rows
        path = self.run.directory / "training_rows.jsonl"
        is_kept = path.exists()
        self.accelerator.wait_for_everyone()
        if not is_kept:
            rows = self.task.training_rows(self.rows)
            if teacher is not None:
                rows = taught(
                    self.task, rows, teacher, self.accelerator, batch_size=self._batch_size
                )
                self.run.say(f"with the teacher, {len(rows)} rows")
            if self.run.is_main:
                write_rows(path, rows)
            self.accelerator.wait_for_everyone()
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def _examples(self, rows: Sequence[Row], where: object) -> Sequence[Any]:
        examples = self.task.examples(rows)
        remarks = self.task.remarks() or f"{len(rows)} rows -> {len(examples)} examples"
        self.run.say(f"{where}: {remarks}")
        return examples

    def _remember_task(self) -> None:
        self.run.remember("task", {"recipe": self._recipe_name(), "learned": self.task.learned})

    def _recipe_name(self) -> str:
        """Return the name of one of peftkit's recipes, the path of any other."""
        own = recipes().get(self.recipe.stem)
        return (
            self.recipe.stem
            if own is not None and own.resolve() == self.recipe
            else str(self.recipe)
        )

    def train(self) -> None:
        """Measure the model, and train it to the end or to a signal."""
        self.task.check(self.model)
        self.before = Measured(
            **(
                self.run.remembered("before")
                or self.run.remember("before", vars(self._measured(self.model)))
            )
        )
        self.run.say(f"before: {_spelled(self.before)}")
        best = self.config.train.best
        if self.held_out and best not in self.before.metrics:
            known = self.before.metrics
            raise ConfigError(
                f"train.best is {best!r}, but this task gives {', '.join(known)}{nearest(best, known)}"
            )
        training = Training(
            self.model, self.examples, self.task.collate, self.config.train, self.run.directory, self.accelerator,
            evaluation=self.held_out_examples, loss=self.task.loss, seed=self.config.seed,
            hooks=Hooks(evaluate=self._metrics if self._measures_often() else None),
        )  # fmt: skip
        self.run.exit_if_interrupted(training.run())

    def _measures_often(self) -> bool:
        """Tell whether each evaluation gives the task's metrics: where they are quick, or decide
        which is best.
        """
        best = self.config.train.best
        return self.task.is_quick_to_measure or best not in ("loss", "perplexity")

    def _metrics(self) -> dict[str, float]:
        return self._found(self.model, self.held_out).metrics

    def _found(self, model: nn.Module, rows: Sequence[Row], *, settling: bool = False) -> Measured:
        """Return how good the model's outputs are, after the task has settled by them where that is
        asked for.
        """
        rows = self.task.measured_rows(rows)
        outputs = self.task.outputs(model, rows, self.accelerator, batch_size=self._batch_size)
        if settling:
            self.task.settle(rows, outputs)
            self._remember_task()
        found = self.task.measure(rows, outputs)
        return dataclasses.replace(found, predictions=self._spread(found.predictions))

    def _spread(self, each: Sequence[Any]) -> list[Any]:
        """Return as many as the report shows, spread over all."""
        count = self.config.samples
        return list(each[:: max(1, len(each) // count)][:count]) if count else []

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

    def _measured(self, model: nn.Module, *, settling: bool = False) -> Measured:
        """Return loss and metrics on the held-out rows (the training rows if there are none), and
        on those of the old task.
        """
        with explained(
            "evaluation", self.config.train, quantization=self.config.model.quantization
        ):
            rows = self.held_out or self.rows
            found = self._found(model, rows, settling=settling)
            metrics = (
                self._loss(model, self.held_out_examples or self.task.examples(rows))
                | found.metrics
            )
            if self.retained:
                retained = (
                    self._loss(model, self.task.examples(self.retained))
                    | self._found(model, self.retained).metrics
                )
                metrics |= {f"retained {name}": value for name, value in retained.items()}
        return dataclasses.replace(found, metrics=metrics)

    def finish(self) -> None:
        """Save the adapter, load it again, measure and report what was saved, and merge where the
        config asks for it.
        """
        run, task, directory = self.run, self.task, self.run.directory / "adapter"
        run.remember("model", peftkit.record(self.model))  # with what the first step has found out
        if run.is_main:
            peftkit.save(self.model, directory)
            with staged_directory(directory) as stage:
                task.processor.save_pretrained(stage)
        self.accelerator.wait_for_everyone()
        model = load(peftkit.detach(self.model), directory)  # what is measured is what was saved
        after = self._measured(model, settling=True)
        run.remember("after", vars(after))
        run.say(f"after: {_spelled(after)}")
        measured, remarks = {"before": self.before, "after": after}, self._remarks()
        if self.config.merge:
            dtype = self.config.model.dtype
            merged = peftkit.merge(
                model,
                default_dtype(self.accelerator.device)
                if dtype == "auto"
                else getattr(torch, dtype),
            )
            measured["merged"] = self._measured(merged)
            remarks.append(f"{summary(merged)}.")
            if run.is_main:
                save_merged(merged, task.processor, run.directory / "merged")
        if run.is_main:
            title = f"{self.config.model.source} on {self.config.data.train}"
            shown = self._spread(task.shown(task.measured_rows(self.held_out or self.rows)))
            report = write_report(run.directory, title, measured, shown, remarks=remarks)
            run.say(f"the adapter is in {directory}, the report in {report}")
        self.accelerator.end_training()

    def _remarks(self) -> list[str]:
        """Return what a reader has to know of the figures."""
        found = [] if self.held_out else ["Measured on the training rows: none were held out."]
        if self.task.learned.get("threshold") is not None:
            found.append(
                f"The threshold, {self.task.learned['threshold']:.3f}, was chosen on the rows that are measured."
            )
        return found


def _check_start(start: Opened, task: Task, config: Any) -> None:
    """Refuse a run to start from whose task or adapter is another one.

    Raises:
        ConfigError: says which.
    """
    if type(start.task) is not type(task) or start.task.head != task.head:
        raise ConfigError(
            f"start: {config.start} was made by another recipe, for {start.task.head}"
        )
    if config.merge and start.config.adapter.method not in ("lora", "adalora"):
        raise ConfigError(
            f"merge needs LoRA or AdaLoRA; the adapter of {config.start} is {start.config.adapter.method}"
        )
    if config.adapter not in (start.config.adapter, LoraSettings()):
        raise ConfigError(
            f"start: the adapter of {config.start} is trained on as it is; leave `adapter` out, or write it as there"
        )


def _check_tokens(model: nn.Module, examples: Sequence[Any]) -> None:
    """Refuse tokens, and texts longer than the positions, that the model has no embedding for.

    Raises:
        ConfigError: names the largest token, or the longest text.
    """
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    rows = getattr(embeddings, "num_embeddings", None)
    found = (
        getattr(each, "input_ids", None) or getattr(each, "features", {}).get("input_ids")
        for each in examples
    )
    texts = [ids for ids in found if ids]
    positions = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and name.rpartition(".")[2] in ("position_embeddings", "wpe")
    ]
    longest = max(map(len, texts), default=0)
    if positions and longest > min(positions):
        raise ConfigError(
            f"a text has {longest} tokens, and the model knows {min(positions)} positions: lower data.max_length"
        )
    largest = max(map(max, texts), default=0)
    if rows is not None and largest >= rows:
        raise ConfigError(
            f"the tokenizer gives the token {largest}, and the model has embeddings for {rows}: they do not belong together, "
            "or tokens were added and the embeddings not enlarged and trained"
        )


def _spelled(measured: Measured) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measured.metrics.items())
