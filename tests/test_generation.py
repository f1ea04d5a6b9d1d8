import pytest

import peftkit
from peftkit.data.questions import fact_accuracy, questions, states
from peftkit.data.rendering import prompt_text
from peftkit.generation import answer

PROMPTS = [[{"role": "user", "content": "x" * n}] for n in (1, 9, 4)]


def test_batched_answers_are_those_given_one_at_a_time(llama_dir, tokenizer):
    import torch

    model = peftkit.load_backbone(llama_dir, dtype=torch.float32).train()
    prompts = [prompt_text(messages, tokenizer) for messages in PROMPTS]
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
    assert states(text, expected) is found


def test_rows_that_say_what_they_expect_are_asked_and_counted(tokenizer):
    def row(n, **more):
        return {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}], **more}

    asked = questions([row(1, expect=["a1"]), row(2), row(3, expect=["a3"])], "chat", tokenizer)
    assert [(q.shown, q.reference, q.expect) for q in asked] == [("q1", "a1", ("a1",)), ("q3", "a3", ("a3",))]
    assert asked[0].prompt == "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    assert fact_accuracy(asked, ["it is a1", "a4"]) == {"exact-fact accuracy": 0.5}
    assert len(questions([row(n) for n in range(9)], "chat", tokenizer, count=4)) == 4
    assert fact_accuracy(questions([row(1)], "chat", tokenizer), ["x"]) == {}
    assert questions([{"prompt": "p", "completion": "c"}], "prompt-completion", tokenizer)[0].prompt == "p"
    assert questions([{"text": "t"}], "text", tokenizer) == []
