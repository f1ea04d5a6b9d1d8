from collections import Counter

import pytest

from peftkit.data.padding import PadRight
from peftkit.data.rendering_counts import describe_counts
from peftkit.data.supervised_tokens import render_batch, render_prompt
from peftkit.errors import DataError
from peftkit.labels import IGNORED

DIALOGUE = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "2."},
]
# Drops what an earlier answer says, as templates do that remove past reasoning.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def render(rows, kind, tokenizer, **options):
    """All examples of some rows, and the counts."""
    counts = Counter()
    examples = []
    for own in render_batch(rows, kind, tokenizer, counts=counts, **options):
        examples += own
    return examples, counts


def render_dialogue(messages, tokenizer, loss_on="assistant"):
    rows = [{"messages": messages}]
    return render(rows, "chat", tokenizer, max_length=9999, loss_on=loss_on)[0]


def learned(example, tokenizer):
    """The supervised stretches as text."""
    stretches, run = [], []
    for label in [*example.labels, IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            stretches.append(tokenizer.decode(run))
            run = []
    return stretches


def test_answers_with_their_end_of_turn_are_learned_and_nothing_else(tokenizer):
    (example,) = render_dialogue(DIALOGUE, tokenizer)
    assert tokenizer.decode(example.input_ids) == tokenizer.apply_chat_template(
        DIALOGUE, tokenize=False
    )
    assert learned(example, tokenizer) == ["1.<|im_end|>", "2.<|im_end|>"]


def test_loss_on_all_learns_every_token(tokenizer):
    (example,) = render_dialogue(DIALOGUE, tokenizer, "all")
    assert example.labels == example.input_ids


def test_generation_marks_are_used_and_the_end_of_turn_is_added_to_them(tokenizer):
    tokenizer.chat_template = MARKED
    (example,) = render_dialogue(DIALOGUE, tokenizer)
    assert learned(example, tokenizer) == ["1.<|im_end|>", "2.<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_makes_one_example_per_answer(tokenizer):
    tokenizer.chat_template = FORGETFUL
    first, second = render_dialogue(DIALOGUE, tokenizer)
    assert learned(first, tokenizer) == ["1.<|im_end|>"]
    assert learned(second, tokenizer) == ["2.<|im_end|>"]
    assert "..." in tokenizer.decode(second.input_ids)
    examples, counts = render([{"messages": DIALOGUE}], "chat", tokenizer, max_length=512)
    assert (counts["split"], counts["split_examples"]) == (1, 2)
    assert counts["split_tokens"] == len(examples[0]) + len(examples[1])
    assert counts["unsplit_tokens"] == len(examples[1])
    assert "1 dialogue split into 2 examples" in describe_counts(counts)


def test_a_template_without_end_of_turn_gets_the_end_of_sequence(tokenizer):
    tokenizer.chat_template = NO_END
    (example,) = render_dialogue(DIALOGUE[1:3], tokenizer)
    assert learned(example, tokenizer) == ["1.<|im_end|>"]


def test_a_template_whose_answers_cannot_be_told_from_prompts_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="loss_on=all"):
        render_dialogue(DIALOGUE, tokenizer)
    assert render_dialogue(DIALOGUE, tokenizer, "all")[0].supervised > 0
    tokenizer.chat_template = "{{ raise_exception('no system messages here') }}"
    with pytest.raises(DataError, match="no system messages here"):
        render_dialogue(DIALOGUE, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        render_dialogue(DIALOGUE, tokenizer)


def test_a_template_that_begins_with_bos_is_rendered_with_one_bos(tokenizer):
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    (example,) = render_dialogue(DIALOGUE, tokenizer)
    assert example.input_ids.count(tokenizer.bos_token_id) == 1
    assert render_prompt(DIALOGUE[:2], tokenizer).count("<s>") == 1


def test_a_system_message_is_added_only_where_there_is_none(tokenizer):
    assert "system\nX" in render_prompt(DIALOGUE[1:2], tokenizer, "X")
    assert "X" not in render_prompt(DIALOGUE[:2], tokenizer, "X")


def test_completions_and_texts_have_an_end_token_and_prompts_are_not_learned(tokenizer):
    rows = [{"prompt": "ask ", "completion": "say"}]
    (example,), _ = render(rows, "prompt-completion", tokenizer, max_length=99)
    assert learned(example, tokenizer) == ["say<|im_end|>"]
    (example,), _ = render([{"text": "story"}], "text", tokenizer, max_length=99)
    assert learned(example, tokenizer) == ["story<|im_end|>"]


def test_truncated_and_dropped_rows_are_counted(tokenizer):
    long = {"messages": [{"role": "user", "content": "x" * 200}, DIALOGUE[2]]}
    short = {"messages": DIALOGUE[1:3]}
    answer = {"messages": [DIALOGUE[1], {"role": "assistant", "content": "y" * 200}]}
    examples, counts = render([long, short, short, answer], "chat", tokenizer, max_length=80)
    assert (counts["rows"], counts["examples"], len(examples)) == (4, 3, 3)
    assert (counts["truncated"], counts["answers_cut"], counts["dropped"]) == (2, 1, 1)
    assert max(len(example.input_ids) for example in examples) == 80


def test_a_row_is_dropped_only_when_none_of_its_split_answers_is_left(tokenizer):
    tokenizer.chat_template = FORGETFUL
    late = [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "late"}]
    rows = [{"messages": DIALOGUE[:3] + late}] * 3
    examples, counts = render(rows, "chat", tokenizer, max_length=100)
    assert (len(examples), counts["truncated"], counts["dropped"]) == (3, 3, 0)


def test_a_dialogue_without_an_answer_is_dropped(tokenizer):
    rows = [{"messages": DIALOGUE[:2]}, {"messages": DIALOGUE}]
    assert render(rows, "chat", tokenizer, max_length=512)[1]["dropped"] == 1


def test_padding_is_masked_and_a_learned_end_of_sequence_is_not(tokenizer):
    """Here the padding token is the end-of-sequence token."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    examples = [
        render_dialogue(DIALOGUE[:3], tokenizer)[0],
        render_dialogue(DIALOGUE, tokenizer)[0],
    ]
    batch = PadRight(tokenizer.pad_token_id)(examples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[1] % 8 == 0
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        assert batch["input_ids"][row, :length].tolist() == example.input_ids
        assert batch["labels"][row, :length].tolist() == example.labels
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )
        assert (batch["labels"][row, length:] == IGNORED).all()
        assert (batch["labels"][row] == tokenizer.eos_token_id).any()
