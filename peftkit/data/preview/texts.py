"""What is shown of examples that are texts: which tokens are learned, and what is cut."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from peftkit.data.packing import pack_examples
from peftkit.data.preview.shown import Kind, Section, Shown
from peftkit.data.preview.tokens import token_section
from peftkit.data.rendering_counts import problems
from peftkit.data.supervised_tokens import Example
from peftkit.labels import IGNORED

_CERTAIN = 3  # tokens that must agree where a text is looked for among those that are read


def show_example(example: Example, tokenizer: Any, max_length: int, counts: Counter[str]) -> Shown:
    """Return an example of a language model, of its whole length.

    Args:
        example: The example, not cut.
        tokenizer: Decodes its tokens.
        max_length: How many of its tokens the model reads.
        counts: What happened to its row when it was rendered.
    """
    kinds: list[Kind] = []
    for place, label in enumerate(example.labels):
        if place >= max_length:
            kinds.append("cut")
        else:
            kinds.append("read" if label == IGNORED or place == 0 else "learned")
    learned = kinds.count("learned")
    notes = problems(counts)
    if len(example) > max_length:
        notes.append(_cut_note(example, max_length))
    if not learned:
        notes.append("No token of it is learned, so training leaves it out.")
    section = token_section("", example.input_ids, kinds, tokenizer)
    return Shown((section,), min(len(example), max_length), learned, tuple(notes))


def _cut_note(example: Example, max_length: int) -> str:
    lost = len(example) - max_length
    note = f"The last {lost:,} of {len(example):,} tokens are beyond data.max_length and cut"
    answers = len(example.labels) - max_length - example.labels[max_length:].count(IGNORED)
    return f"{note}; {answers:,} of them would be learned." if answers else f"{note}."


def read_section(
    name: str,
    ids: Sequence[int],
    texts: Sequence[str],
    tokenizer: Any,
    max_length: int | None,
    kind: Kind = "read",
) -> Section:
    """Return the section of one or several texts that a model reads or learns as one.

    Args:
        name: What the text is called.
        ids: The tokens that the model gets, with special tokens, and perhaps cut.
        texts: What they are the tokens of.
        tokenizer: The tokenizer.
        max_length: The most tokens that it may be; it is cut only where it has so many.
        kind: Whether the tokens are read or learned.
    """
    tokens, kinds = list(ids), [kind] * len(ids)
    if len(ids) == max_length:
        tokens, kinds = _with_cut(ids, texts, tokenizer, kind)
    return token_section(name, tokens, kinds, tokenizer)


def _with_cut(
    ids: Sequence[int], texts: Sequence[str], tokenizer: Any, kind: Kind
) -> tuple[list[int], list[Kind]]:
    """Put the tokens that were cut from the end of texts back to where they were."""
    side = "text" if kind == "read" else "text_target"  # some read and write other tokens
    ends = {*tokenizer.all_special_ids}
    tokens: list[int] = []
    kinds: list[Kind] = []
    place = 0
    for number, text in enumerate(texts, 1):
        whole = tokenizer(**{side: text}, add_special_tokens=False, verbose=False)["input_ids"]
        start = _find(ids, whole[:_CERTAIN], place)
        if start is None and place < len(ids):  # it was changed before, or joined with another
            continue
        if start is None:  # nothing of it is left
            start = place
        end = start
        while end < len(ids) and end - start < len(whole) and ids[end] == whole[end - start]:
            end += 1
        is_end = end == len(ids) or ids[end] in ends or number < len(texts)
        lost = whole[end - start :] if is_end else []
        tokens += [*ids[place:end], *lost]
        kinds += [kind] * (end - place) + ["cut"] * len(lost)
        place = end
    tokens += ids[place:]
    kinds += [kind] * (len(ids) - place)
    return tokens, kinds


def _find(ids: Sequence[int], wanted: Sequence[int], start: int) -> int | None:
    """Return where some tokens first stand from a place on, or None."""
    for place in range(start, len(ids) - len(wanted) + 1):
        if list(ids[place : place + len(wanted)]) == list(wanted):
            return place
    return None


def show_packs(
    examples: Sequence[Example], places: Sequence[str], tokenizer: Any, max_length: int, count: int
) -> list[Shown]:
    """Return some of the packs that training makes of examples.

    Args:
        examples: The examples.
        places: The file and row of each.
        tokenizer: Decodes their tokens.
        max_length: The most tokens of a pack.
        count: How many packs to show at most; they are evenly spread from full to less full ones.
    """
    packs = pack_examples(examples, max_length)
    found = []
    for number in range(0, len(packs), -(-len(packs) // count)):
        sections = []
        learned = 0
        members = packs.members(number)
        for place, member in enumerate(members, 1):
            shown = show_example(examples[member], tokenizer, max_length, Counter())
            name = f"text {place}: {places[member]}, {shown.tokens:,} tokens"
            sections.append(dataclasses.replace(shown.sections[0], name=name))
            learned += shown.learned or 0
        texts = f"{len(members):,} texts that do not see each other"
        where = f"{texts if len(members) > 1 else '1 text'}, pack {number + 1:,} of {len(packs):,}"
        length = int(packs.lengths[number])
        found.append(Shown(tuple(sections), length, learned, where=where))
    return found
