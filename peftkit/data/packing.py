"""Several texts in one example: blocks of long texts, and packs of short ones.

The texts of a pack do not see each other.
"""

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftkit.data.examples import data_digest, largest_token, lengths_of
from peftkit.data.supervised_tokens import Example
from peftkit.errors import ConfigError
from peftkit.labels import IGNORED
from peftkit.modes import evaluation_mode

# Of the mean logit. In bfloat16, rounding in 30 layers of NF4 makes 0.012, and texts that see each
# other make 0.26.
_TOLERANCE = 0.05
_PROBE_TEXTS = 3
_PROBE_TOKENS = 48


def cut_into_blocks(example: Example, max_length: int) -> list[Example]:
    """Cut a long example into blocks of at most `max_length` tokens.

    Each block begins with the last token of the one before, so every token but the first of the
    text is predicted exactly once.
    """
    ids, labels = example.input_ids, example.labels
    blocks = []
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        end = start + max_length
        blocks.append(Example(ids[start:end], labels[start:end]))
    return blocks


@dataclasses.dataclass(frozen=True)
class Pack(Example):
    """Texts one after the other.

    `lengths` has the length of each, in tokens, and `weights` the weight of each in the loss.
    """

    lengths: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


class Packs(Sequence[Pack]):
    """Packs of examples. One is put together each time it is asked for.

    Args:
        examples: The examples.
        members: The numbers of the examples of each pack, one pack after the other.
        ends: Where each pack ends in `members`.

    Attributes:
        texts: The examples.
    """

    def __init__(self, examples: Sequence[Example], members: Any, ends: Any) -> None:
        self.texts = examples
        self._members = members
        self._ends = ends
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        tokens = lengths_of(examples)[members]
        self.lengths = np.add.reduceat(tokens, starts) if len(ends) else tokens
        self.largest_token = largest_token(examples)

    @property
    def digest(self) -> str:
        """A digest of all that is learned from the packs."""
        parts = [data_digest(self.texts).encode(), self._members.tobytes()]
        return hashlib.sha256(b" ".join([*parts, self._ends.tobytes()])).hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        return _join([self.texts[member] for member in self.members(number)])

    def members(self, number: int) -> list[int]:
        """Return the numbers of the examples of a pack."""
        start = self._ends[number - 1] if number else 0
        found: list[int] = self._members[start : self._ends[number]].tolist()
        return found


def pack_examples(examples: Sequence[Example], max_length: int) -> Packs:
    """Put examples together into packs of at most `max_length` tokens.

    Best fit, decreasing: the longest example comes first, and each goes into the pack where it
    leaves the least room.
    """
    lengths = lengths_of(examples)
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, number of the pack), sorted
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        place = bisect.bisect_left(rooms, (length, -1))  # the smallest room that is enough
        if place < len(rooms):
            room, pack = rooms.pop(place)
        else:
            room, pack = max_length, len(packs)
            packs.append([])
        packs[pack].append(number)
        bisect.insort(rooms, (room - length, pack))
    members = np.fromiter(itertools.chain.from_iterable(packs), np.int32, len(lengths))
    return Packs(examples, members, np.cumsum(list(map(len, packs)), dtype=np.int64))


def _join(examples: Sequence[Example]) -> Pack:
    """Put texts one after the other."""
    ids: list[int] = []
    labels: list[int] = []
    for example in examples:
        ids += example.input_ids
        # Nothing before the first token predicts it: what precedes it is another text.
        labels += [IGNORED, *example.labels[1:]]
    weights = tuple(example.weight for example in examples)
    return Pack(ids, labels, lengths=tuple(map(len, examples)), weights=weights)


@dataclasses.dataclass(frozen=True)
class PadPacks:
    """Pad packs at the right into one batch.

    ``position_ids`` start again at 0 with each text, and with the padding. There is no attention
    mask: transformers builds one from the positions, in which each text sees only itself.

    Shapes: ``input_ids``, ``position_ids``, ``labels``, and ``weights`` where one is not 1:
    (batch, longest pack).
    """

    pad_token_id: int

    def __call__(self, packs: Sequence[Pack]) -> dict[str, Tensor]:
        width = max(map(len, packs))
        shape = (len(packs), width)
        input_ids = torch.full(shape, self.pad_token_id)
        position_ids = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        weights = torch.ones(shape)
        for row, pack in enumerate(packs):
            input_ids[row, : len(pack)] = torch.tensor(pack.input_ids)
            labels[row, : len(pack)] = torch.tensor(pack.labels)
            start = 0
            padding = width - len(pack)
            for length, weight in zip((*pack.lengths, padding), (*pack.weights, 1.0), strict=True):
                position_ids[row, start : start + length] = torch.arange(length)
                weights[row, start : start + length] = weight
                start += length
        batch = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
        return batch | {"weights": weights} if (weights != 1).any() else batch


@dataclasses.dataclass(frozen=True)
class PackBatch:
    """Put all examples of a batch into one pack. There is no padding.

    Shapes: ``input_ids``, ``position_ids``, ``labels``: (1, tokens of all examples).
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return PadPacks(self.pad_token_id)(pack_examples(examples, _count_tokens(examples)))


def _count_tokens(examples: Sequence[Example]) -> int:
    return sum(map(len, examples))


def check_packing(
    model: nn.Module,
    collate: Callable[[Sequence[Pack]], dict[str, Tensor]],
    texts: Sequence[Example],
) -> None:
    """Compare the logits of texts in one pack with those of each text alone.

    Args:
        model: A language model.
        collate: Makes a batch of packs.
        texts: Texts of the training; the beginnings of the first few are tried.

    Raises:
        ConfigError: the logits differ by more than rounding, so the texts of a pack see each other.
    """
    probes = []
    for text in texts[:_PROBE_TEXTS]:
        probes.append(Example(text.input_ids[:_PROBE_TOKENS], text.labels[:_PROBE_TOKENS]))
    with evaluation_mode(model), torch.no_grad():
        together = _packed_logits(model, collate, probes)  # [tokens, vocabulary]
        alone = []
        for probe in sorted(probes, key=len, reverse=True):  # the order inside a pack
            alone.append(_packed_logits(model, collate, [probe]))
        expected = torch.cat(alone)  # [tokens, vocabulary]
    difference = float((together - expected).abs().mean() / expected.abs().mean())
    if difference > _TOLERANCE:
        raise ConfigError(
            f"data.packing: in a pack, this model's logits differ by {difference:.0%} from those "
            "of each text alone, so the texts would see each other; set data.packing: false"
        )


def _packed_logits(
    model: nn.Module,
    collate: Callable[[Sequence[Pack]], dict[str, Tensor]],
    texts: Sequence[Example],
) -> Tensor:
    """Return the logits of texts in one pack: (tokens, vocabulary)."""
    device = next(model.parameters()).device
    batch = collate(pack_examples(texts, _count_tokens(texts)))
    logits: Tensor = model(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        use_cache=False,
    ).logits
    return logits[0].float()
