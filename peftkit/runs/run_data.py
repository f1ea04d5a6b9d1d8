"""The rows of one run, and the examples that are made of them before there is a model."""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from peftkit.data.preview.contents import Preview
from peftkit.data.rows import Rows
from peftkit.data.watched_rows import WatchedRows
from peftkit.errors import DataError
from peftkit.files import write_rows
from peftkit.runs.data_preview import preview_examples, write_page
from peftkit.runs.directory import Run
from peftkit.runs.kept_rows import keep_rows
from peftkit.runs.measuring import MeasuredRows, sample_of_training
from peftkit.runs.needed_rows import Needed, encode_needed
from peftkit.runs.report import DATA_PAGE
from peftkit.runs.teacher import add_teacher
from peftkit.runs.training_rows import read_training_rows
from peftkit.tasks.base import Task

_SHOWN_EXAMPLES = 20  # in the page of the run
_ENOUGH_ROWS = 1000  # to judge from those that were drawn whether something is learned of most rows


class RunData:
    """The rows and examples of one run: `read`, then `fit`, then `encode`.

    Args:
        task: The run's task.
        config: The run's config.
        run: Takes what is kept of the rows, and prints what is said of them.

    Attributes:
        rows: The rows to train on.
        distinct: The rows of `data.train` among them, each once.
        held_out: The rows that are held out; perhaps none.
        needed: The examples to learn from.
        preview: What is learned of them; in the main process alone.
        measured: The rows to measure, the held-out ones or some of the others.
        retained: Rows of a task that the model could do before; perhaps none.
        remarks: Sentences for the report.
    """

    rows: Rows
    distinct: Rows
    held_out: Rows
    needed: Needed
    preview: Preview
    measured: MeasuredRows
    retained: MeasuredRows

    def __init__(self, task: Task, config: Any, run: Run) -> None:
        self.task = task
        self.config = config
        self.run = run
        self.title = f"{config.model.source} on {config.data.train}"
        self.remarks: list[str] = []

    def read(self) -> None:
        """Read the rows to train on, and those to measure."""
        found = read_training_rows(self.task, self.config, self.run.directory)
        self.rows, self.held_out = found.training, found.held_out
        self.distinct = found.distinct
        self.retained = MeasuredRows(found.retained, ())
        for line in found.decided:
            self.run.say(line)
        if isinstance(self.config.data.evaluation, float) and self.run.is_main:
            held_out = self._watched(self.held_out, "keeping the held-out rows")
            write_rows(self.run.directory / "evaluation.jsonl", held_out)
        self.run.remember("rows", found.record())

    def fit(self) -> None:
        """Let the task learn from the rows what the model needs, such as its labels."""
        self.task.fit(self._watched(self.rows, "reading labels"))
        for note in self.task.notes:
            self.run.say(f"note: {note}")

    def _watched(self, rows: Rows, what: str) -> Rows:
        return WatchedRows(rows, what, is_shown=self.run.is_main)

    def encode(self) -> None:
        """Turn the rows into examples: no more of them than the steps need."""
        rows = self._rows_to_learn()
        count, seed = self._needed_examples(), self.config.seed
        self.needed = needed = encode_needed(rows, count, seed, self.task.examples)
        self._describe(needed.rows, needed.examples, self.config.data.train)
        if needed.share == 1 or len(needed.rows) >= _ENOUGH_ROWS:
            self.task.check_learned()
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
        if self.retained.rows:
            rows = self.retained.rows
            self.retained = MeasuredRows(rows, self._encode(rows, self.config.data.retention))

    def _preview(self, rows: int) -> None:
        """Show some of the examples that were made last, of so many rows, in a page of the run."""
        self.preview = preview_examples(
            self.task,
            self.config,
            self.needed.rows,
            self.needed.examples,
            self.title,
            count=_SHOWN_EXAMPLES,
            of=rows,
        )
        path = self.run.directory / DATA_PAGE
        write_page(self.preview, path)
        self.run.say(f"what is learned, token by token: {path}")

    def _lint(self) -> None:
        """Say what is likely not meant in the rows, and put it into the report.

        Cut answers are those of the training rows, whose examples were the last to be made.
        """
        found = self.task.lint(self.distinct, self.held_out, thorough=False)
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
        noise = getattr(self.config, "augment", None)
        teacher = getattr(self.config, "teacher", None)
        if noise is not None and noise.copies:
            plain = rows
            rows = keep_rows(directory / "augmented_rows.jsonl", lambda: self.task.augment(plain))
        if teacher is not None:
            labelled, train = rows, self.config.train
            size = train.evaluation_batch_size or train.batch_size
            rows = keep_rows(
                directory / "training_rows.jsonl",
                lambda: add_teacher(self.task, labelled, teacher, batch_size=size),
            )
            self.run.say(f"with the teacher, {len(rows):,} rows")
        return rows

    def _encode(self, rows: Rows, where: str) -> Sequence[Any]:
        examples = self.task.examples(rows)
        self._describe(rows, examples, where)
        self.task.check_learned()
        return examples

    def _describe(self, rows: Rows, examples: Sequence[Any], where: str | list[str]) -> None:
        """Say what became of rows.

        Raises:
            DataError: they give no example.
        """
        remarks = self.task.remarks() or f"{len(rows):,} rows -> {len(examples):,} examples"
        self.run.say(f"{where}: {remarks}")
        if not examples:
            self.task.check_learned()  # knows better why
            raise DataError(f"{where}: none of the {len(rows):,} rows gives an example")

    def _encode_measured(self) -> MeasuredRows:
        """Return the rows to measure: the held-out ones, or else a few of the training rows."""
        if self.held_out:
            file = self.config.data.evaluation
            where = "the held-out rows" if isinstance(file, float) else file
            return MeasuredRows(self.held_out, self._encode(self.held_out, where))
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
