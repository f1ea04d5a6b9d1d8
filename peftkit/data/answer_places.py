"""Where an answer stands in a rendered dialogue."""

import dataclasses
import re
import textwrap
from collections.abc import Sequence

from peftkit.data.chat_templates import ChatTemplate, Dialogue, Span
from peftkit.data.template_probe import Probe, find_words, probe_of, word
from peftkit.errors import DataError

_QUOTED = 60  # characters of a text in a message
_FREE = 10**6  # the number of a word that no part has


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer, in the dialogue up to it.

    Attributes:
        turn: The number of its message.
        text: The dialogue up to and with the answer.
        spans: What of it is learned.
        end: Where its end of turn ends.
        differs: Whether the answer follows something else than the prompt that asks for it.
    """

    turn: int
    text: str
    spans: list[Span]
    end: int
    differs: bool


def find_in_probe(template: ChatTemplate, probe: Probe, turn: int) -> Answer:
    """Return the answer of one turn of a probe, in the dialogue up to it.

    Raises:
        DataError: the template refuses the dialogue, or writes something else after the answer.
    """
    dialogue = probe.dialogue.until(turn)
    text, marks = template.render_marked(dialogue)
    own = probe.words_of(turn, text)
    others = [found.start for found in find_words(text) if found not in own]
    if not own or max(others, default=-1) > own[0].start:
        raise _not_apart(template)
    first, last = own[0].start, own[-1].end
    end = last + _end_of_turn(template, probe, turn, text[last:], own[-1].number)
    answer = _answer(template, dialogue, text, marks, first, end)
    if answer.spans and max(others, default=-1) >= answer.spans[0][0]:
        raise _not_apart(template)  # what begins like a prompt goes on otherwise
    return answer


def _not_apart(template: ChatTemplate) -> DataError:
    return DataError(
        f"the chat template of {template.name} does not put an answer after its prompt, so the two "
        "cannot be told apart: choose another template with data.chat_template, or set "
        "data.loss_on=all"
    )


def find_in_dialogue(template: ChatTemplate, dialogue: Dialogue, turn: int, tail: str) -> Answer:
    """Return the answer of one turn, in the dialogue up to it.

    Args:
        template: The chat template.
        dialogue: The dialogue.
        turn: The number of the answer's message.
        tail: What the template writes after the end of turn of such an answer, if it is the last.

    Raises:
        DataError: the template refuses the dialogue, or leaves out a part of the answer.
    """
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
) -> Answer:
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
    return Answer(turn, text, spans, end, differs)


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
