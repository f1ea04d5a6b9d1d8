from peftkit.data.lint.dialogues import dialogue_item
from peftkit.data.lint.items import LintItem

SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": "Which day is it?"}
ANSWERED = {"role": "assistant", "content": "Friday."}


def test_the_last_answer_is_learned_and_the_rest_is_read():
    messages = [SYSTEM, ASKED, ANSWERED, ASKED, {"role": "assistant", "content": "Still Friday."}]
    assert dialogue_item(messages, "a, row 1") == LintItem(
        "a, row 1", "Be kind.\nWhich day is it?\nWhich day is it?\nFriday.", answer="Still Friday."
    )


def test_an_empty_answer_anywhere_makes_the_answer_empty():
    messages = [ASKED, {"role": "assistant", "content": " "}, ASKED, ANSWERED]
    assert dialogue_item(messages, "a, row 1").answer == ""


def test_an_empty_answer_that_is_not_learned_does_not():
    messages = [ASKED, {"role": "assistant", "content": "", "train": False}, ASKED, ANSWERED]
    assert dialogue_item(messages, "a, row 1").answer == "Friday."


def test_a_call_is_an_answer():
    call = {"type": "function", "function": {"name": "today", "arguments": {"zone": "Zürich"}}}
    messages = [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]
    item = dialogue_item(messages, "a, row 1")
    assert item.answer == '{"name": "today", "arguments": {"zone": "Zürich"}}'


def test_a_dialogue_without_answers_has_none():
    assert dialogue_item([SYSTEM, ASKED], "a, row 1").answer is None
