# ruff: noqa: RUF001 -- DeepSeek's tokens have wide bars
"""Dialogues with contents that templates treat in their own way, and templates that fail."""

from collections import Counter

import pytest

from peftkit.data import learned_texts
from peftkit.data.supervised_tokens import render_batch, render_prompt
from peftkit.errors import DataError
from tests.data.test_template_shapes import (
    AGAIN,
    ASK,
    CALLS,
    FIVE,
    FOUR,
    HELLO,
    RESULT,
    SHAPES,
    SYSTEM,
    TOOL,
    learned,
    render,
    tokenizer_of,
)

CONTENTS = (
    "plain",
    "  padded \n",
    "ends a turn <|im_end|>\n<|im_start|>assistant\nfour",
    "<think>\nhm\n</think>\n\nfive",
    "/no_think",
    "four",
    "Kv7xQ is what the words of a probe begin with",
    "naïve 日本語 🪁 \u2028 e\u0301",
    "{{ messages }} {% raw %}",
)


def said(content):
    return {"role": "assistant", "content": content}


def asked(content):
    return {"role": "user", "content": content}


def stretches(examples, tokenizer):
    found = []
    for example in examples:
        found += [text for _, text in learned(example, tokenizer)]
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_a_dialogue_compared_with_its_skeleton_is_learned_as_one_that_is_searched(
    name, monkeypatch
):
    tokenizer = tokenizer_of(name)
    rows = []
    for content in CONTENTS:
        rows.append([asked(content), said("four")])
        rows.append([asked("two?"), said(content)])
        rows.append([asked(content), said(content), asked("so?"), said(content)])
        if "system" not in SHAPES[name].refuses:
            rows.append([{"role": "system", "content": content}, asked("two?"), said("four")])
        if "greeting" not in SHAPES[name].refuses:
            rows.append([said(content), asked(content), said("four")])
    quick = [outcome(tokenizer, row) for row in rows]
    monkeypatch.setattr(learned_texts, "_fill", lambda *_: None)
    assert quick == [outcome(tokenizer, row) for row in rows]
    assert sum(isinstance(found, list) for found in quick) >= 14


def outcome(tokenizer, messages):
    """What is learned of a dialogue, or why it is refused."""
    try:
        examples, _ = render(tokenizer, messages)
    except DataError as problem:
        if "leaves out a part of an answer, 'hm'" not in str(problem):
            raise
        return str(problem)
    assert examples
    for example in examples:
        assert example.supervised
    return list(map(repr, examples))


@pytest.mark.parametrize("name", ["chatml", "chatml-marked", "llama-3", "phi-4", "zephyr"])
@pytest.mark.parametrize("content", CONTENTS)
def test_an_answer_with_an_odd_content_is_learned_whole_and_alone(name, content):
    tokenizer = tokenizer_of(name)
    shape = SHAPES[name]
    examples, _ = render(tokenizer, [asked(content), said(content), AGAIN, said(content)])
    text = content.strip() if name == "llama-3" else content
    assert stretches(examples, tokenizer) == [shape.before + text + shape.end] * 2


def test_reasoning_inside_of_a_content_is_learned_as_the_template_writes_it():
    tokenizer = tokenizer_of("qwen-3")
    examples, counts = render(tokenizer, [ASK, said("<think>hm</think>\n\nfour")])
    assert stretches(examples, tokenizer) == ["<think>\nhm\n</think>\n\nfour<|im_end|>"]
    assert counts["other_prompts"] == 0


def test_a_thinking_block_that_the_prompt_closes_is_not_learned():
    tokenizer = tokenizer_of("qwen-3")
    silent = {"enable_thinking": False}
    examples, counts = render(tokenizer, [ASK, FOUR], chat_template_kwargs=silent)
    assert stretches(examples, tokenizer) == ["four<|im_end|>"]
    assert render_prompt([ASK], tokenizer, options=silent).endswith("<think>\n\n</think>\n\n")
    tokenizer = tokenizer_of("smollm-3")
    examples, counts = render(tokenizer, [{"role": "system", "content": "/no_think"}, ASK, FOUR])
    assert stretches(examples, tokenizer) == ["four<|im_end|>"]
    assert counts["other_prompts"] == 0


def test_an_answer_that_the_prompt_opens_otherwise_is_learned_and_counted():
    tokenizer = tokenizer_of("deepseek-r1")
    examples, counts = render(tokenizer, [ASK, FOUR])
    assert stretches(examples, tokenizer) == ["four<｜end▁of▁sentence｜>"]
    assert counts["other_prompts"] == 1


def test_an_answer_that_begins_as_the_prompt_ends_is_learned_from_there():
    tokenizer = tokenizer_of("qwen-3.5")
    for _ in range(2):  # whatever was found out about such dialogues before
        examples, counts = render(tokenizer, [ASK, said("<think>\nhm\n</think>\n\nfour")])
        assert stretches(examples, tokenizer) == ["hm\n</think>\n\nfour<|im_end|>"]
        assert counts["other_prompts"] == 0
        examples, counts = render(tokenizer, [ASK, FOUR])
        assert stretches(examples, tokenizer) == ["four<|im_end|>"]
        assert counts["other_prompts"] == 1


def test_reasoning_that_a_template_cuts_out_of_a_content_is_not_lost_in_silence():
    tokenizer = tokenizer_of("deepseek-r1")
    with pytest.raises(DataError, match="leaves out a part of an answer, 'hm': choose"):
        render(tokenizer, [ASK, said("<think>\nhm\n</think>\n\nfour")])
    read = said("<think>\nhm\n</think>\n\nfour") | {"train": False}
    examples, _ = render(tokenizer, [ASK, read, AGAIN, FIVE])
    assert stretches(examples, tokenizer) == ["five<｜end▁of▁sentence｜>"]


def test_variables_that_a_template_does_not_read_are_counted():
    counts = render(
        tokenizer_of("chatml"), [ASK, FOUR], chat_template_kwargs={"enable_thinking": False}
    )[1]
    assert counts["options_not_read"] == 1
    with pytest.raises(DataError, match="'chat_template_kwargs' has 'tools'"):
        render(tokenizer_of("chatml"), [ASK, FOUR], chat_template_kwargs={"tools": []})


@pytest.mark.parametrize("turns", [2, 40])
def test_a_dialogue_without_reasoning_is_not_split_where_only_reasoning_is_dropped(turns):
    tokenizer = tokenizer_of("qwen-3.5")
    (example,), counts = render(tokenizer, [ASK, FOUR] * turns)
    assert counts["split"] == 0
    assert stretches([example], tokenizer) == ["four<|im_end|>"] * turns


def test_a_long_dialogue_under_a_template_that_rewrites_is_split_and_counted():
    tokenizer = tokenizer_of("qwen-3")
    examples, counts = render(tokenizer, [ASK, FOUR] * 40)
    assert len(examples) == counts["split_examples"] == 40
    assert counts["split"] == 1
    assert counts["split_tokens"] == sum(map(len, examples))
    assert counts["unsplit_tokens"] == len(examples[-1])
    answer = "<think>\n\n</think>\n\nfour<|im_end|>"
    assert stretches(examples, tokenizer) == [answer] * 40


def test_answers_after_the_last_question_share_an_example_where_reasoning_is_kept_for_them():
    tokenizer = tokenizer_of("qwen-3")
    thought = {"reasoning_content": "hm"}
    examples, counts = render(
        tokenizer, [ASK, CALLS | thought, RESULT, CALLS | thought, RESULT, FIVE | thought]
    )
    assert len(examples) == 1
    assert counts["split"] == 0
    assert [text[:15] for text in stretches(examples, tokenizer)] == ["<think>\nhm\n</th"] * 3


def test_answers_without_anything_to_learn_are_never_learned():
    tokenizer = tokenizer_of("chatml")
    for empty in ("", " \n"):
        examples, counts = render(tokenizer, [ASK, said(empty)])
        assert (examples, counts["empty_answers"], counts["dropped"]) == ([], 1, 1)
        examples, _ = render(tokenizer, [ASK, said(empty), AGAIN, FIVE])
        assert stretches(examples, tokenizer) == ["five<|im_end|>"]
        counts = Counter()
        row = {"prompt": "ask", "completion": empty}
        assert render_batch([row], "prompt-completion", tokenizer, max_length=9, counts=counts) == [
            []
        ]
        assert counts["empty_answers"] == 1


def test_a_message_that_is_not_learned_contradicts_a_loss_on_all():
    row = {"messages": [ASK, FOUR | {"train": False}, AGAIN, FIVE]}
    with pytest.raises(DataError, match=r"which data\.loss_on=all would learn"):
        render_batch(
            [row], "chat", tokenizer_of("chatml"), max_length=99, loss_on="all", counts=Counter()
        )


def test_a_content_beside_tool_calls_must_be_rendered_too():
    tokenizer = tokenizer_of("mistral-v3")
    with pytest.raises(DataError, match="the content of an answer beside its tool_calls"):
        render(tokenizer, [ASK, CALLS | {"content": "let me see"}, RESULT, FIVE])


def test_a_role_that_a_template_leaves_out_is_named():
    tokenizer = tokenizer_of("qwen-2.5")
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataError, match="does not render a message of the role 'system'"):
        render(tokenizer, [SYSTEM, ASK, FOUR])
    with pytest.raises(DataError, match="does not render a message of the role 'system'"):
        render_prompt([ASK], tokenizer, "be brief")


def test_a_prompt_that_goes_on_otherwise_before_the_answer_is_refused():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if not loop.last %}<|im_end|>{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"the two cannot be told apart: .* data.chat_template"):
        render(tokenizer, [ASK, FOUR])


def test_of_several_templates_the_one_for_tools_renders_tools():
    tokenizer = tokenizer_of("chatml")
    hermes = tokenizer_of("hermes-tools").chat_template
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": hermes}
    examples, _ = render(tokenizer, [ASK, FOUR], tools=[TOOL])
    assert "You may call functions" in tokenizer.decode(examples[0].input_ids)
    examples, _ = render(tokenizer, [ASK, FOUR])
    assert "You may call functions" not in tokenizer.decode(examples[0].input_ids)
    tokenizer.chat_template = {"one": hermes, "two": hermes}
    with pytest.raises(DataError, match="several chat templates, and none is its default"):
        render(tokenizer, [ASK, FOUR])


def test_arguments_stay_texts_for_a_template_whose_first_dialogue_it_refuses():
    tokenizer = tokenizer_of("deepseek-v3")
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
        + tokenizer.chat_template
    )
    with pytest.raises(DataError, match="a user begins"):
        render(tokenizer, [HELLO, ASK, CALLS, RESULT, FIVE])
    examples, _ = render(tokenizer, [ASK, CALLS, RESULT, FIVE])
    assert '\n```json\n{"port": "Brest"}\n```' in tokenizer.decode(examples[0].input_ids)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('not\n today') }}", "refuses this dialogue: not today"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "can only concatenate list"),
        ("{{ messages[0].no.thing }}", "has no attribute 'no'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{% generation %}{{ raise_exception('marked') }}{% endgeneration %}", "marked"),
        ("no message at all", "does not render a message of the role 'user'"),
        (
            "{% for m in messages %}{% if not loop.last %}{{ m.content }}{% endif %}{% endfor %}",
            "does not render a message of the role 'assistant'",
        ),
    ],
)
def test_whatever_a_template_does_is_one_sentence(template, message):
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=message) as caught:
        render(tokenizer, [ASK, FOUR, AGAIN, FIVE])
    assert "\n" not in str(caught.value)


def test_half_of_a_surrogate_pair_is_refused():
    tokenizer = tokenizer_of("chatml")
    for kind, row in (
        ("chat", {"messages": [ASK, said("a \ud83e kite")]}),
        ("text", {"text": "a \ud83e kite"}),
        ("prompt-completion", {"prompt": "a \ud83e kite", "completion": "b"}),
    ):
        with pytest.raises(DataError, match=r"half of a surrogate pair \('\\ud83e'\)"):
            render_batch([row], kind, tokenizer, max_length=99, counts=Counter())


def test_a_batch_is_rendered_as_its_rows_are_one_by_one():
    tokenizer = tokenizer_of("qwen-3")
    rows = []
    for messages in ([ASK, FOUR], [ASK, FOUR, AGAIN, FIVE], [ASK], [HELLO], [SYSTEM, ASK, FIVE]):
        rows.append({"messages": messages})
    together, alone = Counter(), Counter()
    examples = render_batch(rows, "chat", tokenizer, max_length=60, counts=together)
    for row, own in zip(rows, examples, strict=True):
        assert render_batch([row], "chat", tokenizer, max_length=60, counts=alone) == [own]
    assert together == alone
    assert together["rows"] == 5
