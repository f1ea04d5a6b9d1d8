"""A tag for each word: named entities, parts of speech."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftkit.data.class_names import rename_classes, sorted_names
from peftkit.data.lint.items import LintItem
from peftkit.data.padding import pad_with
from peftkit.data.preview.shown import Shown
from peftkit.data.preview.tagged import show_tagged
from peftkit.data.row_files import RowSource, list_sources
from peftkit.data.row_weights import add_weights, counted_weight, describe_weights
from peftkit.data.rows import Row, Rows
from peftkit.data.tagging import (
    Placed,
    find_spans,
    place_words,
    read_tagged_rows,
    read_tags,
    split_words,
)
from peftkit.data.unused_keys import describe_unused
from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.losses.base import Batch, Loss, on_device
from peftkit.losses.classification import classification_loss
from peftkit.metrics.entities import are_entities, entity_metrics, entity_report, tag_metrics
from peftkit.metrics.measurement import Measurement
from peftkit.modes import evaluation_mode
from peftkit.tasks.base import Task
from peftkit.tasks.inference import in_shares
from peftkit.tasks.labels import (
    describe_unused_names,
    describe_variants,
    find_number,
    label_numbers,
    label_overrides,
    likeliest,
    listed,
)

_COLUMNS = ("tokens", "tags", "text", "spans")
_OUTSIDE = "O"  # the tag of a word that is in no entity


@dataclasses.dataclass(frozen=True)
class Tagged:
    """A tokenised sentence with the number of a tag, or -100, for each token.

    `weight` is that of each of its tokens in the loss.
    """

    features: dict[str, Any]
    labels: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def supervised(self) -> int:
        """The number of tokens that carry a tag."""
        return len(self.labels) - self.labels.count(IGNORED)


class TokenClassificationTask(Task):
    """Gives each word a tag, by cross-entropy; its outputs are probabilities of each word's tags.

    Rows have ``tokens`` and ``tags``, or ``text`` and ``spans`` (start, end and label of each
    entity, in characters).

    Args:
        config: A recipe's config; has `data`, with `max_length` and `label_on`, and `loss`.
        tokenizer: A tokenizer that knows the character offsets of its tokens.
    """

    head = "token-classification"
    example_class = Tagged

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.processor = tokenizer
        self.pad = pad_with(tokenizer)

    def read(self, source: RowSource, *, labelled: bool = True) -> Rows:
        """Return rows of words with tags, or of texts with spans."""
        found = []
        data = self.config.data
        for each in list_sources(source):
            rows = read_tagged_rows(each, data.columns, data.encoding, labelled=labelled)
            found.append(rename_classes(rows, data.label_names) if labelled else rows)
        return Rows.joined(found)

    def lint_item(self, row: Row, where: str) -> LintItem:
        """Return a row's text, and each type of its entities or each of its tags once."""
        text, _ = split_words(row)
        tags = dict.fromkeys(read_tags(row))
        tags.pop(_OUTSIDE, None)
        types = dict.fromkeys(tag.removeprefix("B-").removeprefix("I-") for tag in tags)
        return LintItem(where, text, labels=tuple(types))

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn which tags there are, and how often."""
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(read_tags(row))
        found = sorted_names(counts, key=_place_of_tag)
        labels: list[str] = self.learned.setdefault("labels", found)
        new = sorted(counts.keys() - set(labels))
        if new:
            raise DataError(
                f"the tag {new[0]!r} is none of those that the adapter was trained on "
                f"({listed(labels)})"
            )
        if len(labels) < 2:
            raise DataError(f"every word has the tag {labels[0]!r}: there is nothing to tell apart")
        self.learned["counts"] = [counts[label] for label in labels]
        types = [tag[2:] for tag in counts]
        self.notes = describe_variants(counts, "tag", "words")
        self.notes += describe_unused_names(self.config.data.label_names, {*counts, *types})
        self.notes += describe_unused(Rows.of(rows).columns, _COLUMNS)

    def overrides(self) -> dict[str, Any]:
        """Return the head's tags."""
        return label_overrides(self.learned["labels"], self.processor)

    @property
    def loss(self) -> Loss:
        """Cross-entropy, as the config's `loss` asks for it."""
        labels, counts = self.learned["labels"], self.learned["counts"]
        return classification_loss(self.config.loss, labels, counts, None)

    def _place(self, rows: Sequence[Row]) -> list[Placed]:
        data = self.config.data
        return place_words(rows, self.processor, max_length=data.max_length, label_on=data.label_on)

    def encode(self, rows: Sequence[Row], counts: Counter[str]) -> list[list[Tagged]]:
        """Return one example for each row."""
        numbers = label_numbers(self.learned["labels"])
        found = []
        for row, (features, places) in zip(rows, self._place(rows), strict=True):
            labels = [IGNORED] * len(features["input_ids"])
            for place, tag in zip(places, read_tags(row), strict=True):
                number = find_number(tag, numbers, "tag")
                # Of words that share a token, the first is learned.
                if place is not None and labels[place] == IGNORED:
                    labels[place] = number
            counts["words"] += len(places)
            counts["words without a token"] += places.count(None)
            found.append([Tagged(features, labels, counted_weight(row, counts))])
        return found

    def remarks(self) -> str:
        """Return how many words there are, and how many have no token."""
        remark = f"{self.counts['words']} words"
        missing = self.counts["words without a token"]
        if missing:
            remark += f", {missing} of them behind data.max_length or without a token"
        return remark + describe_weights(self.counts)

    def show(self, row: Row) -> list[Shown]:
        """Return a sentence with the tag of each word at the token that carries it."""
        ((example,),) = self.encode([row], Counter())
        text, offsets = split_words(row)
        words = [text[start:end] for start, end in offsets]
        ((_, places),) = self._place([row])
        tagged = list(zip(words, read_tags(row), places, strict=True))
        ids, labels = example.features["input_ids"], self.learned["labels"]
        return [show_tagged(ids, example.labels, labels, tagged, self.processor)]

    def collate(self, examples: Sequence[Tagged]) -> Batch:
        """Return the padded inputs and ``labels``, both (rows, longest example).

        There are ``weights`` of that shape, if a row's is not 1.
        """
        batch = self.pad([example.features for example in examples])
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        for row, example in enumerate(examples):
            labels[row, : len(example)] = torch.tensor(example.labels)
        return add_weights(batch | {"labels": labels}, examples)

    def outputs(
        self, model: nn.Module, rows: Sequence[Row], accelerator: Accelerator, *, batch_size: int
    ) -> list[Any]:
        """Return, for each row, the probabilities of each word's tags; None without a token.

        A word that shares its token with the word before continues that word's entity: I- takes the
        place of B-.
        """
        pairs = self._begin_and_inside()

        def predict(batch: Sequence[Row]) -> list[Any]:
            placed = self._place(batch)
            inputs = self.pad([features for features, _ in placed])
            with accelerator.autocast():
                logits = model(**on_device(accelerator.device, inputs)).logits
            probabilities = logits.float().softmax(-1).tolist()  # [rows, tokens, tags]
            found = []
            for tokens, (_, places) in zip(probabilities, placed, strict=True):
                found.append(_read_words(tokens, places, pairs))
            return found

        with torch.no_grad(), evaluation_mode(model):
            return in_shares(predict, rows, accelerator, batch_size=batch_size, length=_characters)

    def _begin_and_inside(self) -> list[tuple[int, int]]:
        """Return the numbers of B- and I- of each type of entity that has both."""
        labels: list[str] = self.learned["labels"]
        pairs: list[tuple[int, int]] = []
        if not are_entities(labels):
            return pairs
        for number, label in enumerate(labels):
            begin = f"B-{label[2:]}"
            if label.startswith("I-") and begin in labels:
                pairs.append((labels.index(begin), number))
        return pairs

    def average(self, outputs: Sequence[list[Any]]) -> list[Any]:
        """Return the mean probabilities of several models.

        A word that one of them did not see has none.
        """
        means = []
        for sentences in zip(*outputs, strict=True):  # one sentence, from each model
            sentence = []
            for words in zip(*sentences, strict=True):  # one word, from each model
                is_seen = None not in words
                sentence.append(torch.tensor(words).mean(0).tolist() if is_seen else None)
            means.append(sentence)
        return means

    def _choose_tags(self, output: Sequence[Any]) -> list[str]:
        """Return the tag that is predicted for each word of a row."""
        labels: list[str] = self.learned["labels"]
        unseen = _OUTSIDE if _OUTSIDE in labels else labels[0]
        tags = []
        for probabilities in output:
            tags.append(unseen if probabilities is None else labels[likeliest(probabilities)])
        return tags

    def predictions(self, rows: Sequence[Row], outputs: Sequence[Any]) -> list[Row]:
        """Return ``predicted_tags``, one for each word.

        Entities in texts have ``predicted_spans``, in characters, too.
        """
        has_entities = are_entities(self.learned["labels"])
        found: list[Row] = []
        for row, output in zip(rows, outputs, strict=True):
            tags = self._choose_tags(output)
            columns: Row = {"predicted_tags": tags}
            if has_entities and "tokens" not in row:
                columns["predicted_spans"] = find_spans(row, tags)
            found.append(columns)
        return found

    def measure(self, rows: Sequence[Row], outputs: Sequence[Any]) -> Measurement:
        """Return F1 of whole entities, and by type; without entities, the share of right tags."""
        true = [read_tags(row) for row in rows]
        predicted = [self._choose_tags(output) for output in outputs]
        shown = [self._spell(row, tags) for row, tags in zip(rows, predicted, strict=True)]
        if not are_entities(self.learned["labels"]):
            return Measurement(tag_metrics(true, predicted), shown)
        return Measurement(entity_metrics(true, predicted), shown, entity_report(true, predicted))

    def shown(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return each row's text, and its entities or tags."""
        found = []
        for row in rows:
            text, _ = split_words(row)
            found.append((text, self._spell(row, read_tags(row))))
        return found

    def _spell(self, row: Row, tags: Sequence[str]) -> str:
        """Return tags as a person reads them: "Anna (PER), Rome (LOC)"."""
        if not are_entities(self.learned["labels"]):
            return " ".join(tags)
        entities = find_spans(row, tags)
        return ", ".join(f"{entity['text']} ({entity['label']})" for entity in entities)


def _characters(row: Row) -> int:
    return sum(map(len, row["tokens"])) if "tokens" in row else len(row["text"])


def _place_of_tag(tag: str) -> tuple[bool, str, str]:
    """Return what tags are sorted by: O is the first, and B- and I- of a type are neighbours."""
    return tag != _OUTSIDE, tag[2:], tag


def _read_words(
    tokens: Sequence[list[float]], places: Sequence[int | None], pairs: Sequence[tuple[int, int]]
) -> list[list[float] | None]:
    """Return the probabilities of each word's tags: those at its token.

    Where the token is that of the word before, I- gets the higher of B-'s and its own probability,
    and B- the lower.

    Args:
        tokens: The probabilities at each token, [tokens, tags].
        places: The token of each word, or None.
        pairs: The numbers of B- and I- of each type.
    """
    words: list[list[float] | None] = []
    place_before = None
    for place in places:
        if place is None:
            words.append(None)
        else:
            word = list(tokens[place])
            if place == place_before:
                for begin, inside in pairs:
                    word[begin], word[inside] = sorted((word[begin], word[inside]))
            words.append(word)
        place_before = place
    return words
