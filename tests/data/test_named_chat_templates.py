import inspect
from collections import Counter

import pytest

from peftkit.config.sections import DataSettings
from peftkit.data.named_chat_templates import set_chat_template, template_names
from peftkit.data.supervised_tokens import render_batch, render_prompt
from peftkit.errors import ConfigError, DataError
from peftkit.labels import IGNORED

SYSTEM = {"role": "system", "content": "be brief"}
ASK = {"role": "user", "content": "two and two?"}
FOUR = {"role": "assistant", "content": "four"}
AGAIN = {"role": "user", "content": "and one?"}
FIVE = {"role": "assistant", "content": "five"}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4.2 m"}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
# What the prompt leaves to write before an answer.
BEFORE = {"mistral": " ", "vicuna": " "}


@pytest.fixture
def base(tokenizer):
    """A tokenizer of a base model: no template, and no token for turns."""
    tokenizer.chat_template = None
    tokenizer.eos_token = "<s>"
    tokenizer.pad_token = "<s>"
    return tokenizer


def learned(tokenizer, messages, **columns):
    found = []
    rows = [{"messages": messages, **columns}]
    (examples,) = render_batch(rows, "chat", tokenizer, max_length=9999, counts=Counter())
    for example in examples:
        text = ""
        for token, label in zip(example.input_ids, example.labels, strict=True):
            text += "·" if label == IGNORED else tokenizer.decode([token])
        found += [part for part in text.split("·") if part]
    return found


@pytest.mark.parametrize("name", template_names())
def test_answers_end_with_the_end_of_sequence_token(name, base):
    set_chat_template(base, name)
    before = BEFORE.get(name, "")
    answers = [f"{before}four<s>", f"{before}five<s>"]
    assert learned(base, [SYSTEM, ASK, FOUR, AGAIN, FIVE]) == answers
    assert learned(base, [ASK, FOUR, AGAIN, FIVE | {"train": False}]) == answers[:1]
    assert learned(base, [SYSTEM, ASK, FOUR])[0] == answers[0]
    assert "be brief" in render_prompt([SYSTEM, ASK], base)


@pytest.mark.parametrize("name", template_names())
def test_of_a_greeting_its_text_and_its_end_are_learned(name, base):
    set_chat_template(base, name)
    answers = ["four<s>", f"{BEFORE.get(name, '')}five<s>"]
    assert learned(base, [FOUR, AGAIN, FIVE]) == answers


@pytest.mark.parametrize("name", template_names())
def test_a_named_template_begins_as_the_tokenizer_begins_texts(name, base, monkeypatch):
    set_chat_template(base, name)
    assert not render_prompt([ASK], base).startswith("<s>")
    base.chat_template = None
    monkeypatch.setattr("peftkit.data.named_chat_templates.beginning_of_text", lambda _: "<s>")
    set_chat_template(base, name)
    assert render_prompt([ASK], base).startswith("<s>")
    assert not render_prompt([ASK], base).startswith("<s><s>")


def test_the_help_of_the_key_has_every_name():
    source = inspect.getsource(DataSettings)
    for name in template_names():
        assert name in source.partition("chat_template:")[2]


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_tools_and_their_calls_are_rendered(name, base):
    set_chat_template(base, name)
    messages = [SYSTEM, ASK, CALLS, RESULT, FIVE]
    call = '<tool_call>{"name": "tide", "arguments": {"port": "Brest"}}</tool_call><s>'
    assert learned(base, messages, tools=[TOOL]) == [call, "five<s>"]
    prompt = render_prompt(messages[:-1], base, tools=[TOOL])
    assert '"parameters": {"type": "object"}' in prompt
    assert "<tool_response>\n4.2 m\n</tool_response>" in prompt


def test_reasoning_is_learned_where_the_template_has_a_place_for_it(base):
    thought = FOUR | {"reasoning_content": "hm"}
    set_chat_template(base, "qwen3")
    assert learned(base, [ASK, thought]) == ["<think>\nhm\n</think>\n\nfour<s>"]
    assert learned(base, [ASK, FOUR, AGAIN, FIVE]) == ["four<s>", "five<s>"]
    silent = {"enable_thinking": False}
    assert learned(base, [ASK, FOUR], chat_template_kwargs=silent) == ["four<s>"]
    set_chat_template(base, "chatml")
    with pytest.raises(DataError, match="does not render the reasoning_content"):
        learned(base, [ASK, thought])


def test_a_template_is_saved_with_its_tokenizer(base, tmp_path):
    set_chat_template(base, "zephyr")
    base.save_pretrained(tmp_path)
    assert type(base).from_pretrained(tmp_path).chat_template == base.chat_template


def test_a_file_is_taken_as_it_is(base, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}|{% endfor %}", encoding="utf-8")
    set_chat_template(base, str(file))
    assert render_prompt([ASK], base) == "two and two?|"
    set_chat_template(base, None)
    assert render_prompt([ASK], base) == "two and two?|"


def test_what_is_no_template_is_refused(base, tmp_path):
    for text, message in (
        ("{% for m in messages %}", "line 1, is no Jinja"),
        ("\n{{ messages | nothing }}", "line 2, is no Jinja"),
        (" \n", "is empty"),
        ("x" * 300_000, "has 300,000 bytes, and a chat template has at most 262,144"),
    ):
        file = tmp_path / "wrong.jinja"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"^data\.chat_template: .*{message}"):
            set_chat_template(base, str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not in UTF-8"):
        set_chat_template(base, str(file))
    with pytest.raises(ConfigError, match=r"neither a file nor one of .*did you mean 'chatml'\?"):
        set_chat_template(base, "chatml2")
    with pytest.raises(ConfigError, match="neither a file"):
        set_chat_template(base, str(tmp_path))


def test_a_tokenizer_without_an_end_token_gets_no_named_template(base):
    base.eos_token = None
    with pytest.raises(ConfigError, match="ends answers with the end-of-sequence token"):
        set_chat_template(base, "chatml")
