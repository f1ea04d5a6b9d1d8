import json

import pytest

import peftkit
from peftkit.data.questions import asks, fact_accuracy, has_all_facts, read_question
from peftkit.data.supervised_tokens import render_prompt
from peftkit.tasks.generation import answer, stream

PROMPTS = [[{"role": "user", "content": "x" * n}] for n in (1, 9, 4)]


def test_batched_answers_are_those_given_one_at_a_time(llama_dir, tokenizer):
    import torch

    model = peftkit.load_backbone(llama_dir, dtype=torch.float32).train()
    prompts = [render_prompt(messages, tokenizer) for messages in PROMPTS]
    alone = [answer(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert answer(model, tokenizer, prompts, max_new_tokens=6) == alone
    assert answer(model, tokenizer, prompts, max_new_tokens=6, batch_size=2) == alone
    assert model.training
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("It is £93.", ["£93"], True),
        ("It is £93.50.", ["£93"], False),
        ("It takes 14 days", ["4 days"], False),
        ("We close at 4.15 PM.", ["4.15 pm"], True),
        ("9 mph, in plum and lemon", ["9 mph", "Plum and lemon"], True),
        ("9 mph", ["9 mph", "plum"], False),
        ("I can't say", ["can't"], True),
    ],
)
def test_expected_strings_are_found_as_whole_words(text, expected, found):
    assert has_all_facts(text, expected) is found


def test_a_row_is_asked_its_last_question(tokenizer):
    messages = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]
    asked = read_question({"messages": messages, "expect": ["a1"]}, "chat", tokenizer)
    assert (asked.shown, asked.reference, asked.expect) == ("q1", "a1", ("a1",))
    assert asked.prompt == "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    assert read_question({"messages": messages[:1]}, "chat", tokenizer).prompt == asked.prompt
    assert (
        read_question({"prompt": "p", "completion": "c"}, "prompt-completion", tokenizer).prompt
        == "p"
    )
    assert read_question({"text": "a tale"}, "text", tokenizer).prompt == "a t"


TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opener }}{% endif %}"
)


def test_a_question_has_the_tools_and_the_variables_of_its_row(tokenizer):
    tokenizer.chat_template = TOOLS
    call = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}
    tool = {"type": "function", "function": {"name": "tide", "description": "its height"}}
    messages = [
        {"role": "user", "content": "tide?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4.2 m"},
        {"role": "assistant", "content": "4.2 metres."},
    ]
    row = {"messages": messages, "tools": [tool], "chat_template_kwargs": {"opener": "Sure: "}}
    asked = read_question(row, "chat", tokenizer)
    assert asked.prompt.startswith("<|im_start|>system\n[{")
    assert "its height" in asked.prompt
    assert asked.prompt.endswith("<|im_start|>tool\n4.2 m<|im_end|>\n<|im_start|>assistant\nSure: ")
    assert (asked.shown, asked.reference) == ("tide?", "4.2 metres.")
    first = read_question(row | {"messages": messages[:2]}, "chat", tokenizer)
    assert json.loads(first.reference) == [call]


def test_a_greeting_alone_asks_nothing():
    hello = {"role": "assistant", "content": "welcome"}
    system = {"role": "system", "content": "be kind"}
    ask = {"role": "user", "content": "hi"}
    for messages, expected in (
        ([hello], False),
        ([system, hello], False),
        ([hello, ask], True),
        ([system, hello, ask, hello], True),
    ):
        assert asks({"messages": messages}, "chat") is expected
    assert asks({"text": "a tale"}, "text")


def test_answers_that_state_what_is_expected_are_counted(tokenizer):
    def asked(n, expect=None):
        messages = [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]
        return read_question({"messages": messages, "expect": expect}, "chat", tokenizer)

    assert fact_accuracy([asked(1, ["a1"]), asked(3, ["a3"])], ["it is a1", "a4"]) == {
        "exact-fact accuracy": 0.5
    }
    assert fact_accuracy([asked(1)], ["x"]) == {}


def test_a_stream_is_the_answer_in_pieces(llama_dir, tokenizer):
    model = peftkit.load_backbone(llama_dir)
    prompt = render_prompt(PROMPTS[1], tokenizer)
    pieces = list(stream(model, tokenizer, prompt, max_new_tokens=6))
    assert "".join(pieces).strip() == answer(model, tokenizer, [prompt], max_new_tokens=6)[0]


def test_a_closed_stream_stops_the_model(llama_dir, tokenizer):
    model = peftkit.load_backbone(llama_dir)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    pieces = stream(model, tokenizer, "x", max_new_tokens=500)
    next(pieces)
    pieces.close()
    assert len(calls) < 500


def test_a_failure_while_streaming_is_raised(llama_dir, tokenizer):
    model = peftkit.load_backbone(llama_dir)
    with pytest.raises(ValueError, match="temperature"):
        list(stream(model, tokenizer, "x", max_new_tokens=2, do_sample=True, temperature=-1.0))
