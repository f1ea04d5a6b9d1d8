"""Tasks of encoder-decoders that write a text for each row: translation, summaries, speech."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from peftkit.backbones.loading import Head
from peftkit.data.row_files import Row
from peftkit.data.table_rows import RowReader, list_paths, read_table_rows
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, ModelLoss, on_device
from peftkit.metrics.measurement import Measurement
from peftkit.tasks.base import Task
from peftkit.tasks.inference import evaluating, in_shares

Features = Mapping[str, Any]


class Seq2SeqLanguageModel(ModelLoss):
    """Cross-entropy of each token of the target given the source and the tokens before it, in nats,
    summed.
    """

    is_language_model = True
    unit = "tokens"


@dataclasses.dataclass(frozen=True)
class Written:
    """What a model reads of a row, and the tokens that it is to write."""

    features: Features
    labels: list[int]

    def __len__(self) -> int:
        return len(self.features.get("input_ids", ())) + len(self.labels)


class Seq2SeqTask(Task):
    """Writes a text for each row, by cross-entropy; its outputs are texts.

    Args:
        config: A recipe's config; has `data` and `generation`.
        head: The head to load.
        processor: Saved beside the adapter.
        tokenizer: Decodes what is written.
        source: The column that is read; a text, or a file's path.
        target: The column that is to be written.
        encode: Makes the model's inputs of a row.
        label: Makes the tokens to write, with the end, of a text; without a start token, which
            models put before themselves.
        pad: Makes a batch of several rows' inputs.
        metrics: Compares references with written texts.
        read: Reads the rows of one file.
        options: Further arguments of ``model.generate``.
    """

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
        encode: Callable[[Row], Features],
        label: Callable[[str], list[int]],
        pad: Callable[[Sequence[Features]], Batch],
        metrics: Callable[[Sequence[str], Sequence[str]], dict[str, float]],
        read: RowReader = read_table_rows,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.head, self.processor, self.tokenizer = config, head, processor, tokenizer
        self.source, self.target, self.encode, self.label = source, target, encode, label
        self.pad, self.metrics, self.reader = pad, metrics, read
        self.options = config.generation.options() | dict(options or {})
        self._full = self._rows = 0

    def read(self, path: str | Sequence[str], *, labelled: bool = True) -> list[Row]:
        """Return rows with a source and, unless it is to be predicted, a target."""
        columns = dict.fromkeys([self.source, *([self.target] if labelled else [])], (str,))
        return [
            row
            for each in list_paths(path)
            for row in self.reader(each, columns, self.config.data.columns)
        ]

    @property
    def loss(self) -> Loss:
        """Cross-entropy of each token of the target."""
        return Seq2SeqLanguageModel()

    def examples(self, rows: Sequence[Row]) -> list[Written]:
        """Return one example for each row."""
        examples = [Written(self.encode(row), self.label(row[self.target])) for row in rows]
        limit = self.config.data.max_length
        lengths = ((len(each.labels), len(each.features.get("input_ids", ()))) for each in examples)
        self._rows, self._full = len(rows), sum(limit in pair for pair in lengths)
        return examples

    def remarks(self) -> str:
        """Return how many rows there are, and how many fill the longest example."""
        cut = (
            f", {self._full} of them as long as data.max_length, so perhaps cut"
            if self._full
            else ""
        )
        return f"{self._rows} rows{cut}"

    def collate(self, examples: Sequence[Written]) -> Batch:
        """Return the padded inputs and ``labels`` (rows, longest target), -100 in the padding."""
        width = max(len(example.labels) for example in examples)
        labels = [
            example.labels + [IGNORED] * (width - len(example.labels)) for example in examples
        ]
        return {
            **self.pad([example.features for example in examples]),
            "labels": torch.tensor(labels),
        }

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return the text that the model writes for each row."""
        settings: Any = copy.deepcopy(model.generation_config)
        settings.max_length = None  # transformers' default, which warns beside max_new_tokens
        settings.update(**self.options)

        def texts(features: Sequence[Features]) -> list[str]:
            batch = on_device(accelerator.device, self.pad(features))
            with accelerator.autocast():
                ids = model.generate(**batch, generation_config=settings)  # type: ignore[operator]
            written: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            return [text.strip() for text in written]

        features = [self.encode(row) for row in rows]
        with evaluating(model), torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return in_shares(
                texts,
                features,
                accelerator,
                batch_size=batch_size,
                length=lambda each: len(each.get("input_ids", ())),
            )

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``prediction``, a text."""
        return [{"prediction": text} for text in outputs]

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return the metrics of the texts against the rows' own."""
        return Measurement(
            dict(self.metrics([row[self.target] for row in rows], outputs)), list(outputs)
        )

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's source and target."""
        return [(row[self.source], row[self.target]) for row in rows]
