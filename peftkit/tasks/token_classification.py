"""Tasks with a tag for each word: named entities, parts of speech."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftkit.data.padding import pad_with
from peftkit.data.row_files import Row
from peftkit.data.table_rows import list_paths
from peftkit.data.tagging import find_spans, place_words, read_tagged_rows, read_tags
from peftkit.errors import DataError, nearest
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, on_device
from peftkit.losses.classification import classification_loss
from peftkit.metrics.entities import are_entities, entity_metrics, entity_report, tag_metrics
from peftkit.metrics.measurement import Measurement
from peftkit.tasks.base import Task
from peftkit.tasks.inference import evaluating, in_shares

_BEYOND = "O"  # what words behind the longest example are taken for


@dataclasses.dataclass(frozen=True)
class Tagged:
    """A tokenised sentence; ``labels`` has a tag's number at the token that carries it, -100
    elsewhere.
    """

    features: dict[str, Any]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)


class TokenClassificationTask(Task):
    """Gives each word a tag, by cross-entropy; its outputs are the probabilities of each word's
    tags.

    Rows have ``tokens`` and ``tags``, or ``text`` and ``spans`` (start, end and label of each
    entity, in characters).

    Args:
        config: A recipe's config; has `data`, with `max_length` and `label_on`, and `loss`.
        tokenizer: A tokenizer that tells character offsets.
    """

    head = "token-classification"

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config, self.processor, self.pad = config, tokenizer, pad_with(tokenizer)
        self.cut = self.words = 0

    def read(self, path: str | Sequence[str], *, labelled: bool = True) -> list[Row]:
        """Return rows of words with tags, or of texts with spans."""
        return [
            row
            for each in list_paths(path)
            for row in read_tagged_rows(each, self.config.data.columns, labelled=labelled)
        ]

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn which tags there are, and how often."""
        found = [tag for row in rows for tag in read_tags(row)]
        known = self.learned.setdefault(
            "labels", sorted(set(found), key=lambda tag: (tag != "O", tag[2:], tag))
        )
        new = sorted(set(found) - set(known))
        if new:
            raise DataError(
                f"the tag {new[0]!r} is none of those that the adapter was trained on ({', '.join(known)})"
            )
        if len(known) < 2:
            raise DataError(f"every word has the tag {known[0]!r}: there is nothing to tell apart")
        self.learned["counts"] = [found.count(tag) for tag in known]

    def overrides(self) -> dict[str, Any]:
        """Return the head's tags."""
        labels = self.learned["labels"]
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "pad_token_id": self.processor.pad_token_id,
        }

    @property
    def loss(self) -> Loss:
        """Cross-entropy, as the config's `loss` asks for it."""
        return classification_loss(
            self.config.loss, self.learned["labels"], self.learned["counts"], None
        )

    def _placed(self, row: Row) -> tuple[dict[str, Any], list[int | None]]:
        data = self.config.data
        return place_words(row, self.processor, max_length=data.max_length, label_on=data.label_on)

    def examples(self, rows: Sequence[Row]) -> list[Tagged]:
        """Return one example for each row."""
        self.cut = self.words = 0
        return [self._example(row) for row in rows]

    def _example(self, row: Row) -> Tagged:
        encoding, places = self._placed(row)
        labels = [IGNORED] * len(encoding["input_ids"])
        known: list[str] = self.learned["labels"]
        for place, tag in zip(places, read_tags(row), strict=True):
            if tag not in known:
                raise DataError(
                    f"the tag {tag!r} is none of {', '.join(known)}{nearest(tag, known)}"
                )
            if (
                place is not None and labels[place] == IGNORED
            ):  # of words that share a token, the first is learned
                labels[place] = known.index(tag)
        self.words += len(places)
        self.cut += places.count(None)
        return Tagged(encoding, labels)

    def remarks(self) -> str:
        """Return how many words there are, and how many have no token."""
        cut = f", {self.cut} of them behind data.max_length or without a token" if self.cut else ""
        return f"{self.words} words{cut}"

    def collate(self, examples: Sequence[Tagged]) -> Batch:
        """Return the padded inputs and ``labels``, both (rows, longest example)."""
        batch = self.pad([example.features for example in examples])
        batch["labels"] = torch.full(batch["input_ids"].shape, IGNORED)
        for row, example in zip(batch["labels"], examples, strict=True):
            row[: len(example)] = torch.tensor(example.labels)
        return batch

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return, for each row, the probabilities of each word's tags; None for a word without a
        token.

        A word that shares its token with the word before continues that word's entity: I- takes the
        place of B-.
        """
        pairs = self._beginnings()

        def probabilities(placed: Sequence[tuple[dict[str, Any], list[int | None]]]) -> list[Any]:
            batch = on_device(accelerator.device, self.pad([encoding for encoding, _ in placed]))
            with accelerator.autocast():
                logits = model(**batch).logits
            found = logits.float().softmax(-1).tolist()
            return [
                _by_word(tokens, places, pairs)
                for tokens, (_, places) in zip(found, placed, strict=True)
            ]

        placed = [self._placed(row) for row in rows]
        with evaluating(model):
            return in_shares(
                probabilities,
                placed,
                accelerator,
                batch_size=batch_size,
                length=lambda each: len(each[0]["input_ids"]),
            )

    def _beginnings(self) -> list[tuple[int, int]]:
        """Return the numbers of B- and I- of each type of entity that has both."""
        labels: list[str] = self.learned["labels"]
        both = (
            [(f"B-{name[2:]}", name) for name in labels if name.startswith("I-")]
            if are_entities(labels)
            else []
        )
        return [
            (labels.index(begin), labels.index(inside)) for begin, inside in both if begin in labels
        ]

    def averaged(self, outputs: Sequence[list[Any]]) -> list[Any]:
        """Return the mean probabilities of several models; a word that one of them did not see has
        none.
        """
        return [
            [
                None if None in word else torch.tensor(word).mean(0).tolist()
                for word in zip(*sentence, strict=True)
            ]
            for sentence in zip(*outputs, strict=True)
        ]

    def _tags(self, output: Sequence[Any]) -> list[str]:
        labels: list[str] = self.learned["labels"]
        beyond = _BEYOND if _BEYOND in labels else labels[0]
        return [
            beyond if word is None else labels[max(range(len(word)), key=word.__getitem__)]
            for word in output
        ]

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``predicted_tags``, one for each word; of entities in texts, ``predicted_spans``
        in characters too.
        """
        entities = are_entities(self.learned["labels"])
        found: list[Row] = []
        for row, output in zip(rows, outputs, strict=True):
            ours = self._tags(output)
            places = (
                {"predicted_spans": find_spans(row, ours)}
                if entities and "tokens" not in row
                else {}
            )
            found.append({"predicted_tags": ours} | places)
        return found

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return F1 of whole entities and by type; for tags that mark no entities, the share of
        right tags.
        """
        true, predicted = (
            [read_tags(row) for row in rows],
            [self._tags(output) for output in outputs],
        )
        entities = are_entities(self.learned["labels"])
        found = [
            ", ".join(f"{each['text']} ({each['label']})" for each in find_spans(row, ours))
            if entities
            else " ".join(ours)
            for row, ours in zip(rows, predicted, strict=True)
        ]
        if not entities:
            return Measurement(tag_metrics(true, predicted), found)
        return Measurement(entity_metrics(true, predicted), found, entity_report(true, predicted))

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's text, and its entities or tags."""
        entities = are_entities(self.learned["labels"])
        return [
            (
                row.get("text") or " ".join(row["tokens"]),
                ", ".join(
                    f"{each['text']} ({each['label']})" for each in find_spans(row, read_tags(row))
                )
                if entities
                else " ".join(read_tags(row)),
            )
            for row in rows
        ]


def _by_word(
    tokens: Sequence[list[float]], places: Sequence[int | None], pairs: Sequence[tuple[int, int]]
) -> list[list[float] | None]:
    """Return the probabilities at each word's token; on a token of the word before, I- has B-'s if
    they are higher.
    """
    found: list[list[float] | None] = []
    for number, place in enumerate(places):
        chances = None if place is None else list(tokens[place])
        if chances is not None and number and place == places[number - 1]:
            for begin, inside in pairs:
                chances[begin], chances[inside] = sorted((chances[begin], chances[inside]))
        found.append(chances)
    return found
