"""Where the answers stand in a rendered dialogue, and what of each is learned."""

import dataclasses
import re
import textwrap
from collections.abc import Sequence

from peftkit.data.chat_templates import ChatTemplate, Dialogue, Span
from peftkit.data.template_probe import (
    Probe,
    check_parts,
    find_words,
    needs_text_arguments,
    probe_of,
    values_of,
    with_text_arguments,
    word,
)
from peftkit.errors import DataError

_SHAPES = 4096  # of dialogues, whose skeletons are kept
_QUOTED = 60  # characters of a text in a message
_FREE = 10**6  # the number of a word that no part has


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
class _Answer:
    """One answer, in the dialogue up to it.

    Attributes:
        turn: The number of its message.
        text: The dialogue up to and with the answer.
        spans: What of it is learned.
        end: Where its end of turn ends.
        differs: As in `Learned`.
    """

    turn: int
    text: str
    spans: list[Span]
    end: int
    differs: bool


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
    answers = [_find_real(template, dialogue, turn, skeleton.tails[turn]) for turn in turns]
    _, texts = _join(answers)
    return texts


def _skeleton_of(template: ChatTemplate, dialogue: Dialogue, turns: tuple[int, ...]) -> _Skeleton:
    key = (dialogue.shape, turns)
    found = template.found.get(key)
    if found is None:
        probe = probe_of(dialogue)
        answers = [_find_in_probe(template, probe, turn) for turn in turns]
        tails = {answer.turn: answer.text[answer.end :] for answer in answers}
        joined_turns, texts = _join(answers)
        found = _Skeleton(joined_turns, list(map(_ProbedText, texts)), tails)
        _remember(template, key, found)
    assert isinstance(found, _Skeleton)
    return found


def _find_in_probe(template: ChatTemplate, probe: Probe, turn: int) -> _Answer:
    dialogue = probe.dialogue.until(turn)
    text, marks = template.render_marked(dialogue)
    own = probe.words_of(turn, text)
    is_last = bool(own)
    for found in find_words(text):
        if is_last and found.start > own[0].start:
            is_last = found in own
    if not is_last:
        raise DataError(
            f"the chat template of {template.name} does not put an answer after its prompt, so the "
            "two cannot be told apart: choose another template with data.chat_template, or set "
            "data.loss_on=all"
        )
    first, last = own[0].start, own[-1].end
    end = last + _end_of_turn(template, probe, turn, text[last:], own[-1].number)
    return _answer(template, dialogue, text, marks, first, end)


def _find_real(template: ChatTemplate, dialogue: Dialogue, turn: int, tail: str) -> _Answer:
    dialogue = dialogue.until(turn)
    text, marks = template.render_marked(dialogue)
    end = len(text) - len(tail) if text.endswith(tail) else len(text.rstrip())
    _check_whole(template, dialogue.messages[turn]["content"], text)
    return _answer(template, dialogue, text, marks, None, end)


def _check_whole(template: ChatTemplate, content: str, text: str) -> None:
    """Check that all of an answer is in a text, but for what marks its thinking, and white space.

    Some templates cut the reasoning out of an answer.
    """
    written = "".join(text.split())
    for part in re.split("</?think>", content):
        if "".join(part.split()) not in written:
            raise DataError(
                f"the chat template of {template.name} leaves out a part of an answer, "
                f"{textwrap.shorten(part, _QUOTED)!r}: choose another template with "
                "data.chat_template, or take that part out of the rows"
            )


def _answer(
    template: ChatTemplate,
    dialogue: Dialogue,
    text: str,
    marks: list[Span],
    first: int | None,
    end: int,
) -> _Answer:
    """Return the last message of a dialogue as an answer.

    Args:
        template: The chat template.
        dialogue: The dialogue.
        text: The rendered dialogue.
        marks: What the template marks in it.
        first: Where the answer's own text begins; None to look for it if that must be known.
        end: Where its end of turn ends.
    """
    turn = len(dialogue.messages) - 1
    start = None
    is_asked = any(message["role"] in ("user", "tool") for message in dialogue.messages[:turn])
    if is_asked:
        prompt = _prompt_before(template, dialogue)
        if prompt is not None and text.startswith(prompt):
            start = len(prompt)
    differs = is_asked and start is None
    if start is None:
        start = _first_character(template, dialogue, text) if first is None else first
        start = _before_calls(template, dialogue, text, start)
    spans = [(start, end)]
    if template.marks_answers:
        earliest = 0 if differs else start
        spans = []
        for left, right in _marked_spans(template, text, marks, end):
            if right > start:
                spans.append((max(left, earliest), right))
        differs = False
    return _Answer(turn, text, spans, end, differs)


def _marked_spans(template: ChatTemplate, text: str, marks: list[Span], end: int) -> list[Span]:
    """Return what the template marks, up to the end of the last turn.

    Marks may stop before the end of turn, but the model has to learn to stop.
    """
    spans = []
    for left, right in marks:
        between = re.sub(_any_of(template.ends), "", text[right:end])
        spans.append((left, min(right, end) if between.strip() else end))
    return spans


def _prompt_before(template: ChatTemplate, dialogue: Dialogue) -> str | None:
    """Return the prompt that asks for a dialogue's last message."""
    turn = len(dialogue.messages) - 1
    try:
        return template.render(dialogue.until(turn - 1), prompt=True)
    except DataError:  # the dialogue is taken as a whole only
        return None


def _first_character(template: ChatTemplate, dialogue: Dialogue, text: str) -> int:
    """Return where the text of a dialogue's last message begins.

    That is where another dialogue has a word, or something else already, that differs from it in
    that message alone.
    """
    turn = len(dialogue.messages) - 1
    probed = template.render(probe_of(dialogue, turn).dialogue)
    shared = _shared_length(probed, text)
    return min([shared, *(found.start for found in find_words(probed)[:1])])


def _before_calls(template: ChatTemplate, dialogue: Dialogue, text: str, first: int) -> int:
    """Return where an answer of tool calls alone begins: before what opens the first call.

    That is where its content would begin, if it had one.

    Args:
        template: The chat template.
        dialogue: The dialogue up to the answer.
        text: The rendered dialogue.
        first: Where the answer's own text begins.
    """
    *before, message = dialogue.messages
    if message["content"].strip() or not message.get("tool_calls"):
        return first
    content = word(_FREE)
    with_content = [*before, message | {"content": content}]
    try:
        written = template.render(dataclasses.replace(dialogue, messages=with_content))
    except DataError:  # the template takes calls alone only
        return first
    opening, found, _ = written.partition(content)
    return min(first, len(opening)) if found and text.startswith(opening) else first


def _end_of_turn(template: ChatTemplate, probe: Probe, turn: int, rest: str, last_word: int) -> int:
    """Return how many characters after an answer belong to its end of turn.

    Templates write more there: a line break, or a token that ends the whole dialogue. The end of
    turn is what is there too when another message follows. If nothing is, it is all of it.

    Args:
        template: The chat template.
        probe: The probe.
        turn: The number of the answer's message.
        rest: What the template writes after the answer, if it is the last message.
        last_word: The number of the answer's last word.
    """
    dialogue = probe.dialogue.until(turn)
    call_ids = [call.get("id") for call in dialogue.messages[turn].get("tool_calls") or ()]
    following = {"role": "user", "content": word(len(probe.parts))}
    if call_ids:
        following |= {"role": "tool", "tool_call_id": call_ids[0] or "", "name": word(0)}
    try:
        followed = template.render(dialogue.followed_by(following))
    except DataError:
        return len(rest.rstrip())
    marker = word(last_word)
    if marker not in followed:
        return len(rest.rstrip())
    other = followed[followed.rindex(marker) + len(marker) :]
    shared = _shared_beginning(rest, other, template.ends).rstrip()
    return len(shared) or len(rest.rstrip())


def _shared_beginning(one: str, other: str, tokens: Sequence[str]) -> str:
    """Return what two texts begin with, without a part of a special token or of a word."""
    length = _shared_length(one, other)
    if length == len(one):
        return one
    boundaries = [0]
    for found in re.finditer(_any_of(tokens), one):
        boundaries += found.span()
    for found in re.finditer(r"\s", one):
        boundaries += found.span()
    return one[: max(place for place in boundaries if place <= length)]


def _shared_length(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _any_of(tokens: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"


def _join(answers: Sequence[_Answer]) -> tuple[list[int], list[Learned]]:
    """Put answers into as few texts as hold them as they are.

    Returns:
        The number of each text's last message, and the texts.
    """
    groups: list[list[_Answer]] = []
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
