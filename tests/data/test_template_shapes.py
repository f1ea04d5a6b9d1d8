# ruff: noqa: RUF001 -- DeepSeek's tokens have wide bars
"""Masks under the shapes of public chat templates, against what is written here by hand.

The template files were written for these tests. A shape says what must be learned besides an
answer's own text: what the model has to write before it, and the end of turn after it.
"""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from peftkit.data.supervised_tokens import render_batch, render_prompt
from peftkit.errors import DataError
from peftkit.labels import IGNORED
from tests.conftest import byte_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = re.compile(r"<\|\w+\|>|<｜[^｜<]+｜>|</?s>|<(?:start|end)_of_turn>|\[\|endofturn\|\]")


@dataclasses.dataclass
class Shape:
    end: str
    """What ends an answer, and is learned with it."""
    before: str = ""
    """What the model writes between the prompt and an answer's text, and is learned with it."""
    last_end: str | None = None
    """What ends an answer that is the dialogue's last message, if that is not `end`."""
    eos: str = ""
    refuses: tuple[str, ...] = ()
    """The dialogues that the template refuses."""
    call: str | None = None
    """A tool call, as it is learned; None if the template renders none."""
    tools: bool | None = None
    """Whether the schemas of tools are rendered, if that is not so where calls are."""
    thought: str | None = None
    """An answer with reasoning, as it is learned; None if the template renders none."""
    splits: bool = False
    """Whether each answer becomes an example of its own."""


CALL = '{"port": "Brest"}'
HERMES = '<tool_call>\n{"name": "tide", "arguments": ' + CALL + "}\n</tool_call><|im_end|>"
THOUGHT = "<think>\nhm\n</think>\n\nfour<|im_end|>"
IM = "<|im_end|>"
SHAPES = {
    "chatml": Shape(IM),
    "chatml-default-system": Shape(IM),
    "chatml-marked": Shape(IM),
    "chatml-marked-content": Shape(IM),
    "llama-2": Shape(" </s>", " ", eos="</s>", refuses=("greeting",)),
    "llama-3": Shape("<|eot_id|>"),
    "llama-3.1": Shape("<|eot_id|>", call='{"name": "tide", "parameters": ' + CALL + "}<|eot_id|>"),
    "llama-4": Shape("<|eot|>"),
    "mistral-v1": Shape("</s>", eos="</s>", refuses=("system", "greeting")),
    "mistral-v3": Shape(
        "</s>",
        " ",
        eos="</s>",
        refuses=("system",),
        call='[TOOL_CALLS] [{"name": "tide", "arguments": ' + CALL + ', "id": "a1b2c3d4e"}]</s>',
    ),
    "mistral-v7": Shape("</s>", eos="</s>"),
    "gemma": Shape("<end_of_turn>", refuses=("system", "greeting")),
    "gemma-3": Shape("<end_of_turn>", refuses=("greeting",)),
    "phi-3": Shape("<|end|>", eos="<|endoftext|>"),
    "phi-4": Shape(IM),
    "qwen-2.5": Shape(IM, call=HERMES),
    "qwen-3": Shape(
        IM, "<think>\n\n</think>\n\n", call="<think>\n\n</think>\n\n" + HERMES, thought=THOUGHT,
        splits=True,
    ),
    "qwen-3-thinking": Shape(IM, "\n</think>\n\n", thought=THOUGHT[len("<think>\n"):], splits=True),
    "qwen-3.5": Shape(IM, thought=THOUGHT[len("<think>\n"):]),
    "deepseek-r1": Shape("<｜end▁of▁sentence｜>"),
    "deepseek-v3": Shape(
        "<｜end▁of▁sentence｜>",
        call="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>tide\n```json\n"
        + CALL + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        tools=False,
    ),
    "zephyr": Shape("</s>", "\n", eos="</s>"),
    "stablelm": Shape("<|endoftext|>", eos="<|endoftext|>"),
    "vicuna": Shape("</s>", " ", eos="</s>"),
    "alpaca": Shape("", last_end="</s>", eos="</s>"),
    "falcon": Shape("", " ", last_end="<|endoftext|>", eos="<|endoftext|>"),
    "command-r": Shape("<|END_OF_TURN_TOKEN|>"),
    "olmo-2": Shape("<|endoftext|>", eos="<|endoftext|>"),
    "smollm-3": Shape(IM),
    "granite": Shape("<|end_of_text|>", call='<|tool_call|>[{"name": "tide", "arguments": ' + CALL
                     + "}]<|end_of_text|>"),
    "yi": Shape(IM),
    "internlm-2": Shape(IM),
    "glm-4": Shape("", last_end="<|endoftext|>", eos="<|endoftext|>"),
    "nemotron": Shape("", last_end="</s>", eos="</s>"),
    "gpt-oss": Shape(
        "<|return|>", "<|channel|>final<|message|>", eos="<|return|>", splits=True,
        thought="<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>four<|return|>",
    ),
    "minicpm": Shape("</s>", eos="</s>"),
    "hermes-tools": Shape(IM, call="\n" + HERMES),
    "openchat": Shape("<|end_of_turn|>", " "),
    "exaone": Shape("[|endofturn|]"),
    "kimi-k2": Shape(IM, call="<|tool_calls_section_begin|><|tool_call_begin|>tide"
                     "<|tool_call_argument_begin|>" + CALL
                     + "<|tool_call_end|><|tool_calls_section_end|><|im_end|>"),
    "no-prompt": Shape(IM, "<|im_start|>assistant\n"),
    "repr-arguments": Shape(IM, call="<call>tide " + CALL + "</call><|im_end|>"),
}  # fmt: skip
SYSTEM = {"role": "system", "content": "be brief"}
ASK = {"role": "user", "content": "two and two?"}
FOUR = {"role": "assistant", "content": "four"}
AGAIN = {"role": "user", "content": "and one?"}
FIVE = {"role": "assistant", "content": "five"}
HELLO = {"role": "assistant", "content": "welcome"}
TOOL = {"type": "function", "function": {"name": "tide", "description": "height", "parameters": {}}}
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "a1b2c3d4e",
            "function": {"name": "tide", "arguments": {"port": "Brest"}},
        }
    ],
}
RESULT = {"role": "tool", "content": "4.2 m", "tool_call_id": "a1b2c3d4e", "name": "tide"}


def tokenizer_of(name):
    text = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer = byte_tokenizer()
    tokens = set(SPECIAL.findall(text)) | {SHAPES[name].eos} - {""}
    tokenizer.add_tokens(sorted(tokens), special_tokens=True)
    known = [token for token in sorted(tokens) if token not in tokenizer.all_special_tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", *known]})
    if SHAPES[name].eos:
        tokenizer.eos_token = SHAPES[name].eos
    tokenizer.chat_template = text
    return tokenizer


def render(tokenizer, messages, **columns):
    counts = Counter()
    row = {"messages": messages, **columns}
    (examples,) = render_batch([row], "chat", tokenizer, max_length=9999, counts=counts)
    return examples, counts


def learned(example, tokenizer):
    """The learned stretches, and the text before each."""
    found, run = [], []
    for place, label in enumerate([*example.labels, IGNORED]):
        if label != IGNORED:
            run.append(label)
        elif run:
            before = tokenizer.decode(example.input_ids[: place - len(run)])
            found.append((before, tokenizer.decode(run)))
            run = []
    return found


def check(name, messages, **columns):
    """Compare what is learned with the shape, and what is read with transformers' rendering."""
    shape = SHAPES[name]
    tokenizer = tokenizer_of(name)
    examples, counts = render(tokenizer, messages, **columns)
    stretches, expected = [], []
    for example in examples:
        stretches += learned(example, tokenizer)
    is_learned = [m["role"] == "assistant" and m.get("train", True) for m in messages]
    last = max(turn for turn, learns in enumerate(is_learned) if learns)
    for turn, message in enumerate(messages):
        if is_learned[turn]:
            is_asked = any(before["role"] != "system" for before in messages[:turn])
            before = shape.before if is_asked else ""
            end = shape.end if turn < last or shape.last_end is None else shape.last_end
            expected.append(before + message["content"] + end)
    assert [text for _, text in stretches] == expected
    return stretches, examples, counts, tokenizer


ALL = pytest.mark.parametrize("name", SHAPES)


def test_every_template_file_has_a_shape():
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(SHAPES)
    assert len(SHAPES) >= 25


@ALL
def test_an_answer_is_learned_after_its_prompt_with_its_end_of_turn(name):
    [(before, _)], _, counts, tokenizer = check(name, [ASK, FOUR])
    prompt = tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    if counts["other_prompts"]:
        assert name in ("deepseek-r1", "qwen-3.5")
        assert not before.endswith("<think>\n")
        assert prompt.endswith("<think>\n")
    else:
        assert before == prompt
        assert before == render_prompt([ASK], tokenizer)


@ALL
def test_a_system_message_is_read_or_refused_with_the_templates_words(name):
    if "system" in SHAPES[name].refuses:
        with pytest.raises(DataError, match=r"(?i)refuses this dialogue: .*(role|support)"):
            render(tokenizer_of(name), [SYSTEM, ASK, FOUR])
    else:
        [(before, _)], *_ = check(name, [SYSTEM, ASK, FOUR])
        assert "be brief" in before


@ALL
def test_of_a_greeting_its_text_and_its_end_are_learned(name):
    if "greeting" in SHAPES[name].refuses:
        with pytest.raises(DataError, match=r"refuses this dialogue: .*alternate"):
            render(tokenizer_of(name), [HELLO, ASK, FOUR])
    else:
        check(name, [HELLO, ASK, FOUR])
        check(name, [HELLO])


@ALL
def test_a_greeting_after_a_system_message_is_learned_alone(name):
    if not SHAPES[name].refuses:
        check(name, [SYSTEM, HELLO, ASK, FOUR])


@ALL
def test_both_of_two_answers_are_learned(name):
    _, examples, counts, tokenizer = check(name, [ASK, FOUR, AGAIN, FIVE])
    assert len(examples) == (2 if SHAPES[name].splits else 1)
    assert counts["split"] == SHAPES[name].splits
    whole = tokenizer.apply_chat_template([ASK, FOUR, AGAIN, FIVE], tokenize=False)
    text = tokenizer.decode(examples[-1].input_ids)
    assert text.removesuffix(SHAPES[name].last_end or "").strip() in whole
    if name not in ("phi-3", "alpaca", "nemotron"):
        assert len(whole) - len(text) <= 1


@ALL
def test_an_answer_with_train_false_is_read_and_not_learned(name):
    [(before, _)], *_ = check(name, [ASK, FOUR | {"train": False}, AGAIN, FIVE])
    assert "four" in before
    check(name, [ASK, FOUR, AGAIN, FIVE | {"train": False}])


@ALL
def test_tools_and_their_calls_are_rendered_or_the_row_is_refused(name):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(name)
    messages = [ASK, CALLS, RESULT, FIVE]
    renders_tools = shape.call is not None if shape.tools is None else shape.tools
    if shape.call is None:
        with pytest.raises(DataError, match=r"does not render|refuses|tool"):
            render(tokenizer, messages)
    else:
        examples, _ = render(tokenizer, messages)
        stretches = []
        for example in examples:
            stretches += [text for _, text in learned(example, tokenizer)]
        assert stretches == [shape.call, shape.before + "five" + shape.end]
    if renders_tools:
        examples, _ = render(tokenizer, [ASK, FOUR], tools=[TOOL])
        assert "height" in tokenizer.decode(examples[0].input_ids)
        assert "height" in render_prompt([ASK], tokenizer, tools=[TOOL])
    else:
        with pytest.raises(DataError, match=r"does not render tools: .*data.chat_template"):
            render(tokenizer, [ASK, FOUR], tools=[TOOL])
        with pytest.raises(DataError, match="does not render tools"):
            render_prompt([ASK], tokenizer, tools=[TOOL])


@ALL
def test_reasoning_is_learned_or_the_row_is_refused(name):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(name)
    messages = [ASK, FOUR | {"reasoning_content": "hm"}]
    if shape.thought is None:
        with pytest.raises(DataError, match="does not render the reasoning_content of an answer"):
            render(tokenizer, messages)
    else:
        (example,), counts = render(tokenizer, messages)
        assert [text for _, text in learned(example, tokenizer)] == [shape.thought]
        assert counts["other_prompts"] == 0
        examples, _ = render(tokenizer, [*messages, AGAIN, FIVE])
        assert [text for _, text in learned(examples[0], tokenizer)] == [shape.thought]
        assert "hm" not in tokenizer.decode(examples[1].input_ids)
