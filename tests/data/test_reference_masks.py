"""Masks of drawn dialogues, token by token, against a reference that renders without the answer.

The reference knows nothing of how peftkit looks for answers. An answer's text is what differs if
another text stands in its place. It is learned from the end of the prompt that transformers renders
for it, and with the end of turn that the shape of the template names.
"""

import random

import pytest

from peftkit.labels import IGNORED
from tests.data.test_template_shapes import SHAPES, render, tokenizer_of

WORDS = ("four", "a kite of silk", "1. one\n2. two", "it rose at noon; it fell", "é, 日本, 🪁")
OTHER = "Q~Q"


def draw(source, shape):
    """A dialogue of one to five turns that the template takes."""
    messages = []
    if "system" not in shape.refuses and source.random() < 0.5:
        messages.append({"role": "system", "content": source.choice(WORDS)})
    if "greeting" not in shape.refuses and source.random() < 0.3:
        messages.append({"role": "assistant", "content": source.choice(WORDS)})
    for _ in range(source.randint(1, 3)):
        messages.append({"role": "user", "content": source.choice(WORDS)})
        messages.append({"role": "assistant", "content": source.choice(WORDS)})
        if source.random() < 0.3:
            messages[-1]["train"] = False
    messages[-1].pop("train", None)
    return messages


def shared(one, other):
    length = 0
    while one[length : length + 1] and one[length : length + 1] == other[length : length + 1]:
        length += 1
    return length


def answer_in(tokenizer, shape, messages, turn):
    """The dialogue up to the end of an answer, and where the answer begins in it."""
    upto = messages[: turn + 1]
    text = tokenizer.apply_chat_template(upto, tokenize=False)
    changed = [*upto[:-1], upto[-1] | {"content": OTHER}]
    other = tokenizer.apply_chat_template(changed, tokenize=False)
    start = shared(text, other)
    end = len(text) - shared(text[::-1], other[::-1])
    assert text[start:end] == upto[-1]["content"]
    assert text[end:].startswith(shape.end)
    if any(message["role"] == "user" for message in upto):
        prompt = tokenizer.apply_chat_template(
            upto[:-1], tokenize=False, add_generation_prompt=True
        )
        start = len(prompt) if text.startswith(prompt) else start
    return text[: end + len(shape.end)], start


def reference_mask(text, answers):
    """Whether each character of a text is learned, and which of the answers are in it."""
    mask, found = [False] * len(text), []
    for turn, (upto, start) in answers.items():
        if text.startswith(upto):
            mask[start : len(upto)] = [True] * (len(upto) - start)
            found.append(turn)
    return mask, found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", SHAPES)
def test_the_mask_is_that_of_a_reference(name, seed):
    shape, tokenizer = SHAPES[name], tokenizer_of(name)
    messages = draw(random.Random(f"{name} {seed}"), shape)
    answers = {}
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("train", True):
            answers[turn] = answer_in(tokenizer, shape, messages, turn)
    examples, _ = render(tokenizer, messages)
    learned = []
    for example in examples:
        ids = example.input_ids
        if shape.last_end:  # an end token that the template does not write
            assert tokenizer.decode(example.labels[-1:]) == shape.last_end
            ids = ids[:-1]
        mask, found = reference_mask(tokenizer.decode(ids), answers)
        is_learned = [label != IGNORED for label in example.labels[: len(ids)]]
        assert is_learned == spread(tokenizer, ids, mask)
        learned += found
    assert sorted(set(learned)) == sorted(answers)
    if not shape.splits:
        assert len(examples) == 1


def spread(tokenizer, ids, mask):
    """Whether each token is learned: a special token is its characters, any other is a byte."""
    bits = []
    for character, is_learned in zip(tokenizer.decode(ids), mask, strict=True):
        bits += [is_learned] * len(character.encode())
    learned, place = [], 0
    for token in ids:
        text = tokenizer.convert_ids_to_tokens(token)
        width = len(text.encode()) if token in tokenizer.all_special_ids else 1
        learned.append(any(bits[place : place + width]))
        place += width
    assert place == len(bits)
    return learned
