"""The texts that a dialogue is learned from: rendered, with the places of what is learned."""

import dataclasses
from collections.abc import Sequence

from peftkit.data.answer_places import Answer, find_in_dialogue, find_in_probe
from peftkit.data.chat_templates import ChatTemplate, Dialogue, Span
from peftkit.data.template_probe import (
    check_parts,
    find_words,
    needs_text_arguments,
    probe_of,
    values_of,
    with_text_arguments,
)

_SHAPES = 4096  # of dialogues, whose skeletons are kept


@dataclasses.dataclass(frozen=True)
class Learned:
    """A rendered text, and the characters of it that are learned.

    Attributes:
        text: The text.
        spans: What is learned, in order.
        differs: Whether an answer follows something else than the prompt that asks for one.
    """

    text: str
    spans: list[Span]
    differs: bool = False


@dataclasses.dataclass(frozen=True)
class _Skeleton:
    """What the texts of all dialogues of one shape have in common.

    Attributes:
        turns: The last message of each of the texts.
        texts: The rendered probe up to there.
        tails: What the template writes after the end of turn of each answer that is learned.
    """

    turns: list[int]
    texts: list["_ProbedText"]
    tails: dict[int, str]


def check_dialogue(template: ChatTemplate, dialogue: Dialogue) -> Dialogue:
    """Return a dialogue as its template takes it, after a check that the template renders all.

    Raises:
        DataError: the template refuses the dialogue, or leaves something out.
    """
    dialogue = _as_taken(template, dialogue)
    key = ("checked", dialogue.shape)
    if key not in template.found:
        check_parts(probe_of(dialogue), template)
        _remember(template, key, True)
    return dialogue


def _as_taken(template: ChatTemplate, dialogue: Dialogue) -> Dialogue:
    if not any(message.get("tool_calls") for message in dialogue.messages):
        return dialogue
    needs_text = template.found.get("arguments are texts")
    if needs_text is None:
        needs_text = needs_text_arguments(template, dialogue)
        _remember(template, "arguments are texts", needs_text)
    return with_text_arguments(dialogue) if needs_text else dialogue


def _remember(template: ChatTemplate, key: object, found: object) -> None:
    if len(template.found) > _SHAPES:
        template.found.clear()
    template.found[key] = found


def find_answers(template: ChatTemplate, dialogue: Dialogue, turns: Sequence[int]) -> list[Learned]:
    """Render a dialogue, and find the answers in it.

    An answer is learned from where the prompt that asks for it ends, to the end of its turn. If the
    template marks what the model generates (``{% generation %}``), the marks are learned.

    Some templates rewrite earlier turns when a later one follows, for example to drop past
    reasoning. Answers that are not in the text as the model would have to write them go into texts
    of their own, rendered as the model will see them.

    All this is found once for dialogues of one shape, from a probe. Other dialogues of that shape
    are rendered once, and compared with it. If there is any difference but the contents, their own
    answers are looked for.

    Args:
        template: The chat template.
        dialogue: As `check_dialogue` returned it.
        turns: The numbers of the messages to learn.

    Raises:
        DataError: the template refuses the dialogue, or its answers cannot be told from their
            prompts.
    """
    if not turns:
        return []
    skeleton = _skeleton_of(template, dialogue, tuple(turns))
    can_be_filled = dialogue.tools is None
    for message in dialogue.messages:
        can_be_filled = can_be_filled and not message.get("tool_calls")
    for text in skeleton.texts:  # an answer may begin with what the prompt ends with
        can_be_filled = can_be_filled and not text.learned.differs
    if can_be_filled:
        filled = _fill(template, dialogue, skeleton)
        if filled is not None:
            return filled
    answers = [find_in_dialogue(template, dialogue, turn, skeleton.tails[turn]) for turn in turns]
    _, texts = _join(answers)
    return texts


def _skeleton_of(template: ChatTemplate, dialogue: Dialogue, turns: tuple[int, ...]) -> _Skeleton:
    key = (dialogue.shape, turns)
    found = template.found.get(key)
    if found is None:
        probe = probe_of(dialogue)
        answers = [find_in_probe(template, probe, turn) for turn in turns]
        tails = {answer.turn: answer.text[answer.end :] for answer in answers}
        joined_turns, texts = _join(answers)
        found = _Skeleton(joined_turns, list(map(_ProbedText, texts)), tails)
        _remember(template, key, found)
    assert isinstance(found, _Skeleton)
    return found


def _join(answers: Sequence[Answer]) -> tuple[list[int], list[Learned]]:
    """Put answers into as few texts as hold them as they are.

    Returns:
        The number of each text's last message, and the texts.
    """
    groups: list[list[Answer]] = []
    for answer in reversed(answers):
        upto = answer.text[: answer.end]
        for group in groups:
            if group[0].text.startswith(upto):
                group.insert(1, answer)
                break
        else:
            groups.insert(0, [answer])
    turns, texts = [], []
    for group in groups:
        longest, *earlier = group
        spans: list[Span] = []
        for answer in [*earlier, longest]:
            spans += answer.spans
        turns.append(longest.turn)
        texts.append(Learned(longest.text, spans, any(answer.differs for answer in group)))
    return turns, texts


def _fill(template: ChatTemplate, dialogue: Dialogue, skeleton: _Skeleton) -> list[Learned] | None:
    """Render a dialogue into the texts of its skeleton; None if it does not have their form."""
    values = values_of(dialogue)
    texts = []
    for turn, probed in zip(skeleton.turns, skeleton.texts, strict=True):
        text = template.render(dialogue.until(turn))
        spans = probed.spans_in(text, values)
        if spans is None:
            return None
        texts.append(Learned(text, spans, probed.learned.differs))
    return texts


class _ProbedText:
    """A rendered probe, and what is learned of it."""

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self.words = find_words(learned.text)
        self.beginning = learned.text[: self.words[0].start]
        self.after: list[str] = []  # each word, up to the next one
        for number, found in enumerate(self.words, 1):
            following = self.words[number].start if number < len(self.words) else None
            self.after.append(learned.text[found.end : following])

    def spans_in(self, text: str, values: Sequence[str]) -> list[Span] | None:
        """Return what is learned of a text that has values in place of the words.

        None, if the text has any other difference.
        """
        if not text.startswith(self.beginning):
            return None
        place = len(self.beginning)
        ends = []
        for found, after in zip(self.words, self.after, strict=True):
            value = values[found.number]
            if not text.startswith(value + after, place):
                value = value.strip()  # as many templates do
                if not text.startswith(value + after, place):
                    return None
            ends.append(place + len(value))
            place = ends[-1] + len(after)
        if place != len(text):
            return None
        spans = []
        for start, end in self.learned.spans:
            spans.append((self._moved(start, ends), self._moved(end, ends)))
        return spans

    def _moved(self, place: int, ends: Sequence[int]) -> int:
        """Return a place in the text for one in the probe that is not within a word."""
        shift = 0
        for found, end in zip(self.words, ends, strict=True):
            if found.end > place:
                break
            shift = end - found.end
        return place + shift
