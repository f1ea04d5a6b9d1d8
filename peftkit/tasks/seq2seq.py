"""A text that an encoder-decoder writes for each row: a translation, a summary, a transcript."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from peftkit.backbones.loading import Head
from peftkit.data.lint.items import LintItem
from peftkit.data.preview.inputs import input_section
from peftkit.data.preview.shown import Shown
from peftkit.data.preview.texts import read_section
from peftkit.data.row_files import RowSource, list_sources
from peftkit.data.row_weights import add_weights, counted_weight, describe_weights
from peftkit.data.rows import Row, Rows
from peftkit.data.table_rows import RowReader, read_table_rows
from peftkit.data.table_values import read_any_text, read_text
from peftkit.data.text_encoding import CUT
from peftkit.data.unused_keys import describe_unused
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, ModelLoss, on_device
from peftkit.metrics.measurement import Measurement
from peftkit.modes import evaluation_mode
from peftkit.tasks.base import Task
from peftkit.tasks.inference import in_shares

Features = Mapping[str, Any]

_SOURCES_CUT = "sources cut"
_TARGETS_CUT = "targets cut"


class Seq2SeqLoss(ModelLoss):
    """Summed cross-entropy of the target's tokens, in nats, given the source and those before."""

    is_language_model = True
    unit = "tokens"


@dataclasses.dataclass(frozen=True)
class Written:
    """What a model reads of a row, and the tokens that it learns to write.

    `weight` is that of each of these tokens in the loss.
    """

    features: Features
    labels: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return _source_length(self.features) + len(self.labels)

    @property
    def supervised(self) -> int:
        """The number of learned tokens."""
        return len(self.labels)


class Seq2SeqTask(Task):
    """Writes a text for each row, by cross-entropy; its outputs are texts.

    Args:
        config: A recipe's config; has `data` and `generation`.
        head: The head to load.
        processor: Saved beside the adapter.
        tokenizer: Decodes what is written.
        source: The column that is read; a text, or a file's path.
        target: The column that is written.
        encode: Makes the model's inputs of some rows, and counts those that it cuts.
        label: Makes the tokens to write of some texts, and counts those that it cuts. They have an
            end token and no start token, which models add themselves.
        pad: Makes a batch of several rows' inputs.
        metrics: Compares references with written texts.
        read: Reads the rows of one file.
        options: Further arguments of ``model.generate``.
    """

    example_class = Written
    is_quick_to_measure = False
    averages = False

    def __init__(
        self,
        config: Any,
        *,
        head: Head,
        processor: Any,
        tokenizer: Any,
        source: str,
        target: str,
        encode: Callable[[Sequence[Row], Counter[str]], Sequence[Features]],
        label: Callable[[Sequence[str], Counter[str]], Sequence[list[int]]],
        pad: Callable[[Sequence[Features]], Batch],
        metrics: Callable[[Sequence[str], Sequence[str]], dict[str, float]],
        read: RowReader = read_table_rows,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.head = head
        self.processor = processor
        self.tokenizer = tokenizer
        self.source = source
        self.target = target
        self.encode_inputs = encode
        self.label = label
        self.pad = pad
        self.metrics = metrics
        self.read_file = read
        self.options = config.generation.options() | dict(options or {})

    def read(self, source: RowSource, *, labelled: bool = True) -> Rows:
        """Return rows with a source and, if they are labelled, a target."""
        names = [self.source, self.target] if labelled else [self.source]
        columns = dict.fromkeys(names, read_text if labelled else read_any_text)
        found = []
        data = self.config.data
        for each in list_sources(source):
            found.append(self.read_file(each, columns, data.columns, data.encoding))
        return Rows.joined(found)

    def fit(self, rows: Sequence[Row]) -> None:
        """Note which columns are not read."""
        self.notes = describe_unused(Rows.of(rows).columns, (self.source, self.target))

    def lint_item(self, row: Row, where: str) -> LintItem:
        """Return the source, a text or a file, and the target."""
        target = row.get(self.target)
        if self.head == "seq2seq-lm":
            return LintItem(where, row[self.source], answer=target)
        return LintItem(where, answer=target, file=row[self.source])

    @property
    def loss(self) -> Loss:
        """Cross-entropy of each token of the target."""
        return Seq2SeqLoss()

    def encode(self, rows: Sequence[Row], counts: Counter[str]) -> list[list[Written]]:
        """Return one example for each row."""
        of_source, of_target = Counter[str](), Counter[str]()
        inputs = self.encode_inputs(rows, of_source)
        targets = self.label([row[self.target] for row in rows], of_target)
        counts[_SOURCES_CUT] += of_source[CUT]
        counts[_TARGETS_CUT] += of_target[CUT]
        found = []
        for row, features, target in zip(rows, inputs, targets, strict=True):
            found.append([Written(features, target, counted_weight(row, counts))])
        return found

    def remarks(self) -> str:
        """Return how many rows there are, and how many texts were cut."""
        remark = f"{self.counts['rows']} rows"
        for name in (_SOURCES_CUT, _TARGETS_CUT):
            if self.counts[name]:
                remark += f", {self.counts[name]} {name} at data.max_length"
        return remark + describe_weights(self.counts)

    def show(self, row: Row) -> list[Shown]:
        """Return what is read, a text or a sound, and the text that is written."""
        ((example,),) = self.encode([row], Counter())
        limit = self.config.data.max_length
        sources = [getattr(self.config.data, "prompt", "") + row[self.source]]
        source = input_section(
            self.source, example.features, sources, self.processor, self.pad, limit
        )
        target = read_section(
            self.target, example.labels, [row[self.target]], self.tokenizer, limit, "learned"
        )
        return [Shown((source, target), len(example), example.supervised)]

    def collate(self, examples: Sequence[Written]) -> Batch:
        """Return the padded inputs and ``labels`` (rows, longest target), -100 in the padding.

        There are ``weights`` of that shape, if a row's is not 1.
        """
        batch = dict(self.pad([example.features for example in examples]))
        longest = max(len(example.labels) for example in examples)
        labels = torch.full((len(examples), longest), IGNORED)
        for row, example in enumerate(examples):
            labels[row, : len(example.labels)] = torch.tensor(example.labels)
        batch["labels"] = labels
        return add_weights(batch, examples)

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return the text that the model writes for each row."""
        settings: Any = copy.deepcopy(model.generation_config)
        settings.max_length = None  # transformers' default, which warns beside max_new_tokens
        settings.update(**self.options)

        def write(read: Sequence[Row]) -> list[str]:
            inputs = self.pad(self.encode_inputs(read, Counter()))
            batch = on_device(accelerator.device, inputs)
            with accelerator.autocast():
                ids = model.generate(**batch, generation_config=settings)  # type: ignore[operator]
            texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            return [text.strip() for text in texts]

        with torch.no_grad(), evaluation_mode(model), torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return in_shares(
                write, rows, accelerator, batch_size=batch_size, length=self._characters
            )

    def _characters(self, row: Row) -> int:
        """Return how long the source is; sounds have 0."""
        return len(row[self.source]) if self.head == "seq2seq-lm" else 0

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, a text."""
        return [{"prediction": text} for text in outputs]

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return the metrics of the texts against the rows' own."""
        references = [row[self.target] for row in rows]
        return Measurement(dict(self.metrics(references, outputs)), list(outputs))

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's source and target."""
        return [(row[self.source], row[self.target]) for row in rows]


def _source_length(features: Features) -> int:
    """Return the length of a text in tokens; pictures and sounds have 0."""
    return len(features.get("input_ids", ()))
