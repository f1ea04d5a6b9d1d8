"""A decoder that writes what follows: answers in dialogues, completions, texts."""

import dataclasses
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftkit.data.dialogue_formats import read_text_rows
from peftkit.data.lint.dialogues import dialogue_item
from peftkit.data.lint.items import LintItem
from peftkit.data.named_chat_templates import set_chat_template
from peftkit.data.packing import PackBatch, PadPacks, check_packing, cut_into_blocks, pack_examples
from peftkit.data.padding import PadRight, padding_token
from peftkit.data.preview.shown import Shown
from peftkit.data.preview.texts import show_example, show_packs
from peftkit.data.questions import (
    Question,
    asks,
    beginning_of_text,
    fact_accuracy,
    read_question,
)
from peftkit.data.rendering_counts import UNUSED, describe_counts
from peftkit.data.row_files import RowSource, list_sources
from peftkit.data.row_formats import Format
from peftkit.data.row_weights import counted_weight, describe_weights
from peftkit.data.rows import Row, Rows
from peftkit.data.shots import with_shots
from peftkit.data.supervised_tokens import Example, render_batch, render_prompt
from peftkit.errors import DataError
from peftkit.losses.base import Batch, CausalLMLoss, Loss
from peftkit.metrics.measurement import Measurement
from peftkit.modes import evaluation_mode
from peftkit.tasks.base import Task
from peftkit.tasks.generation import answer
from peftkit.tasks.inference import in_shares

_ROWS_WITH_FORMATS = 1000
_PROMPTS_AT_A_TIME = 64  # writing has no logits of whole texts, and is quicker in large batches


class CausalLMTask(Task):
    """Learns to write what follows, by cross-entropy; its outputs are texts.

    Rows are dialogues, prompts with completions, or texts: see `peftkit.data.row_formats`. Of a
    text, a model is asked for what follows its first tokens.

    Args:
        config: A recipe's config; has `data` (a `DataSettings`), `generation` and `samples`.
        tokenizer: With a chat template, if rows are dialogues.
    """

    head = "causal-lm"
    example_class = Example
    is_quick_to_measure = False
    averages = False

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        set_chat_template(tokenizer, config.data.chat_template)
        self.processor = tokenizer
        self.packing = config.data.packing
        pads = {False: PadRight, True: PadPacks, "batch": PackBatch}
        self.pad: Callable[[Sequence[Any]], Batch] = pads[self.packing](padding_token(tokenizer))
        self._texts: Sequence[Example] = ()  # the last examples, before they are packed
        self._packs = 0

    def read(self, source: RowSource, *, labelled: bool = True) -> Rows:
        """Return rows of any of the formats, each with its ``format``."""
        found = []
        for each in list_sources(source):
            found.append(read_text_rows(self.config.data, each, labelled=labelled))
        return Rows.joined(found)

    def fit(self, rows: Sequence[Row]) -> None:
        """Remember the formats of the training rows: a trained model is asked in the same form.

        Of many rows, a thousand are looked at, evenly spread.
        """
        every = max(1, math.ceil(len(rows) / _ROWS_WITH_FORMATS))
        self.learned["formats"] = sorted({row["format"] for row in rows[::every]})

    def lint_item(self, row: Row, where: str) -> LintItem:
        """Return what is read of a row, and the last answer, the completion or the text."""
        if row["format"] == "chat":
            return dialogue_item(row["messages"], where)
        if row["format"] == "text":
            return LintItem(where, answer=row["text"])
        return LintItem(where, row["prompt"], answer=row["completion"])

    @property
    def shots(self) -> Sequence[Row]:
        """The solved examples that come before each row; none unless `data.shots` asks for them."""
        found: Sequence[Row] = self.learned.get("shots", ())
        return found

    @property
    def loss(self) -> Loss:
        """Cross-entropy of each supervised token."""
        return CausalLMLoss()

    def encode(self, rows: Sequence[Row], counts: Counter[str]) -> list[list[Example]]:
        """Return the rendered rows: long texts in blocks."""
        data = self.config.data
        for row in rows:
            counts.update(UNUSED + name for name in row.get("unused", ()))
        return self._render(rows, counts, data.max_length)

    def _render(
        self, rows: Sequence[Row], counts: Counter[str], max_length: int
    ) -> list[list[Example]]:
        """Return the rendered rows; all but texts are cut at the length."""
        data = self.config.data
        found: list[list[Example]] = []
        rows = [with_shots(row, self.shots) for row in rows]
        for kind, grouped in itertools.groupby(rows, key=lambda row: row["format"]):
            group = list(grouped)
            counts[kind] += 1
            rendered = render_batch(
                group,
                kind,
                self.processor,
                max_length=data.max_length if kind == "text" else max_length,
                loss_on=data.loss_on or "assistant",
                system=data.system,
                cut=cut_into_blocks if kind == "text" else None,
                counts=counts,
            )
            for row, examples in zip(group, rendered, strict=True):
                found.append(_weighted(examples, counted_weight(row, counts)))
        return found

    def examples(self, rows: Sequence[Row]) -> Sequence[Example]:
        """Return the rendered rows, packed if the config asks for it."""
        self._texts = self.encode_all(rows)
        if self.packing is not True:
            return self._texts
        packs = pack_examples(self._texts, self.config.data.max_length)
        self._packs = len(packs)
        return packs

    def check_learned(self) -> None:
        """Check that at least half of the rows have a supervised token."""
        dropped, rows = self.counts["dropped"], self.counts["rows"]
        if dropped > rows / 2:
            raise DataError(
                f"{dropped:,} of {rows:,} rows have no supervised token within "
                f"{self.config.data.max_length} tokens: raise data.max_length, or see `peftkit "
                "preview` for what is supervised"
            )

    def remarks(self) -> str:
        """Return what became of the rows."""
        formats = [kind for kind in get_args(Format) if self.counts[kind]]
        remark = f"{' and '.join(formats)}, {describe_counts(self.counts)}"
        remark += describe_weights(self.counts)
        return f"{remark}, in {self._packs} packs" if self._packs else remark

    def show(self, row: Row) -> Iterator[Shown]:
        """Yield the examples of a row: blocks of a text, the whole of all else."""
        counts: Counter[str] = Counter()
        (examples,) = self._render([row], counts, sys.maxsize)
        for example in examples:
            yield show_example(example, self.processor, self.config.data.max_length, counts)

    def show_rows(self, rows: Rows, count: int) -> list[Shown]:
        """Return the first examples of rows; packs of them, if the config asks for packing."""
        if self.packing is not True:
            return super().show_rows(rows, count)
        texts: list[Example] = []
        places: list[str] = []
        for number, examples in enumerate(self.encode(list(rows), Counter())):
            texts += examples
            places += [rows.where(number)] * len(examples)
        return show_packs(texts, places, self.processor, self.config.data.max_length, count)

    def check(self, model: nn.Module) -> None:
        """Check that packed texts compute what unpacked ones do, if the config asks for packs."""
        if self.packing:
            check_packing(model, PadPacks(self.processor.pad_token_id), self._texts)

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Return the padded batch."""
        return self.pad(examples)

    def measured_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with an ``expect`` list; if no row has one, `samples` of all.

        Of the samples, those are left out that ask nothing.
        """
        checked = [row for row in rows if row.get("expect")]
        count = self.config.samples
        if checked or count == 0:
            return checked
        every = max(1, len(rows) // count)
        return [row for row in rows[::every][:count] if asks(row, row["format"])]

    def question(self, row: Row) -> Question:
        """Return what a row asks, after the shots of the run."""
        asked = with_shots(row, self.shots)
        question = read_question(
            asked, asked["format"], self.processor, system=self.config.data.system
        )
        if row["format"] == "prompt-completion":
            return dataclasses.replace(question, shown=row["prompt"])
        return question

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return an answer to each row's last question, or a text that follows its prompt."""
        options = self.config.generation.options()

        def write(prompts: Sequence[str]) -> list[str]:
            return answer(model, self.processor, prompts, batch_size=len(prompts), **options)

        prompts = [self.question(row).prompt for row in rows]
        with torch.no_grad(), evaluation_mode(model), torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            at_a_time = max(batch_size, _PROMPTS_AT_A_TIME)
            return in_shares(write, prompts, accelerator, batch_size=at_a_time)

    def prompt(self, turns: Sequence[dict[str, str]], text: str) -> str:
        """Return the rendered prompt for a question after `turns` of a dialogue.

        The shots of the run come first. If the run did not learn from dialogues, it is the text
        alone, with the beginning that texts and prompts have in training.
        """
        if "chat" in self.learned.get("formats", ["chat"]):
            messages = [*turns, {"role": "user", "content": text}]
            asked = with_shots({"format": "chat", "messages": messages}, self.shots)
            return render_prompt(asked["messages"], self.processor, self.config.data.system)
        if self.shots:
            text = with_shots({"format": "prompt-completion", "prompt": text}, self.shots)["prompt"]
        return beginning_of_text(self.processor) + text

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, a text."""
        return [{"prediction": text} for text in outputs]

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return the share of answers that state what their rows expect, if any row does."""
        questions = [self.question(row) for row in rows]
        return Measurement(fact_accuracy(questions, outputs), list(outputs))

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's question, and what it expects or its own answer."""
        found = []
        for row in rows:
            question = self.question(row)
            found.append((question.shown, ", ".join(question.expect) or question.reference))
        return found


def _weighted(examples: list[Example], weight: float) -> list[Example]:
    """Return the examples of one row with its weight."""
    if weight == 1:
        return examples
    return [dataclasses.replace(example, weight=weight) for example in examples]
