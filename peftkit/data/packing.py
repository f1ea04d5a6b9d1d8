"""Several texts in one example: blocks of long texts, and packs of short ones that do not see each
other.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from peftkit.data.supervised_tokens import Example
from peftkit.errors import ConfigError
from peftkit.labels import IGNORED

_TOLERANCE = 0.05  # of the mean logit; in bfloat16, 30 layers of NF4 round to 0.012, and texts that see each other make 0.26


def cut_into_blocks(example: Example, max_length: int) -> list[Example]:
    """Cut a long example into blocks of at most `max_length` tokens.

    Each block begins with the last token of the one before, so that every token but the text's
    first is predicted once.
    """
    ids, labels = example.input_ids, example.labels
    starts = range(0, max(1, len(ids) - 1), max_length - 1)
    return [
        Example(ids[start : start + max_length], labels[start : start + max_length])
        for start in starts
    ]


@dataclasses.dataclass(frozen=True)
class Pack(Example):
    """Texts one after the other; `lengths` are theirs, in tokens."""

    lengths: tuple[int, ...] = ()


def pack_examples(examples: Sequence[Example], max_length: int) -> list[Pack]:
    """Put examples together into packs of at most `max_length` tokens, the longest first, each
    where it fits best.

    The first token of each has no label: nothing before it predicts it.
    """
    room: list[tuple[int, int]] = []  # what is left in a pack, and the pack's number; sorted
    packs: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):
        place = bisect.bisect_left(room, (len(example), -1))
        left, number = room.pop(place) if place < len(room) else (max_length, len(packs))
        if number == len(packs):
            packs.append([])
        packs[number].append(example)
        bisect.insort(room, (left - len(example), number))
    return [
        Pack(
            [token for each in pack for token in each.input_ids],
            [label for each in pack for label in (IGNORED, *each.labels[1:])],
            tuple(map(len, pack)),
        )
        for pack in packs
    ]


@dataclasses.dataclass(frozen=True)
class PadPacks:
    """Pad packs at the right into one batch; ``position_ids`` begin anew with each text, and with
    the padding.

    There is no attention mask: from the positions transformers builds one in which each text sees
    itself alone.

    Shapes: ``input_ids``, ``position_ids``, ``labels``: (batch, longest pack).
    """

    pad_token_id: int

    def __call__(self, packs: Sequence[Pack]) -> dict[str, Tensor]:
        width = max(map(len, packs))

        def row(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (width - len(values))

        positions = [
            [i for length in (*pack.lengths, width - len(pack)) for i in range(length)]
            for pack in packs
        ]
        return {
            "input_ids": torch.tensor([row(pack.input_ids, self.pad_token_id) for pack in packs]),
            "position_ids": torch.tensor(positions),
            "labels": torch.tensor([row(pack.labels, IGNORED) for pack in packs]),
        }


@dataclasses.dataclass(frozen=True)
class PackBatch:
    """Put the examples of a batch into one pack: no padding, and no example sees another."""

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return PadPacks(self.pad_token_id)(pack_examples(examples, sum(map(len, examples))))


def check_packing(
    model: nn.Module,
    collate: Callable[[Sequence[Pack]], dict[str, Tensor]],
    texts: Sequence[Example],
) -> None:
    """Compare the model's logits for texts in one pack with those for each text alone.

    Raises:
        ConfigError: they differ by more than rounding: the texts of a pack would see each other.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    short = [Example(text.input_ids[:48], text.labels[:48]) for text in texts[:3]]

    def logits(batch: Sequence[Example]) -> Tensor:
        made = collate(pack_examples(batch, sum(map(len, batch))))
        found: Tensor = model(
            input_ids=made["input_ids"].to(device),
            position_ids=made["position_ids"].to(device),
            use_cache=False,
        ).logits[0]
        return found.float()

    with torch.no_grad():
        together = logits(short)
        alone = torch.cat([logits([text]) for text in sorted(short, key=len, reverse=True)])
    model.train(training)
    difference = float((together - alone).abs().mean() / alone.abs().mean())
    if difference > _TOLERANCE:
        raise ConfigError(
            f"data.packing: in a pack this model's logits differ by {difference:.0%} from those of each text alone, so the "
            "texts would see each other; set data.packing: false"
        )
