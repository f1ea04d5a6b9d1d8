"""What users of other libraries have reported as wrong, tried from the rows to the report.

Cases 06, 07 and 16 of the collection (two runs in one directory, SIGTERM, a full disk) are not
about rows, and are not here.
"""

import json

import pytest

from peftkit.config.reading import build
from peftkit.errors import ConfigError, DataError
from peftkit.files import read_json
from peftkit.labels import IGNORED
from peftkit.runs.recipes import load_recipe, recipe_named
from peftkit.training.metrics_log import read_metrics
from tests.conftest import byte_tokenizer, llama_config
from tests.recipes.jobs import run, write_jsonl

# Like SmolLM2's: a dialogue without a system message gets one.
CHATML = """\
{% if messages[0].role != 'system' %}<|im_start|>system
You help at the harbour.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WITH_TOOLS = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{%- if m.tool_calls %}{% for t in m.tool_calls %}<tool_call>\
{{ t.function | tojson }}</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WITHOUT_SYSTEM = """\
{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}\
{% endif %}{% if m.role == 'assistant' %}<|im_start|>assistant
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "Height of the tide",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
    },
}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "tide", "arguments": {"port": "Brest"}},
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("peftkit.runs.report.draw_all", lambda directory: {})


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text} | more


def called(content):
    """A dialogue in which the assistant calls a tool; `content` is what it says beside the call."""
    return [
        user("Tide at Brest?"),
        assistant(content, tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "c1", "content": "4.2 m"},
        assistant("4.2 metres."),
    ]


def write_model(directory, template=CHATML, **tokens):
    """Write a config of a two-layer Llama of width 32, and a tokenizer; return the config."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(directory)
    llama_config(hidden_size=32, intermediate_size=64).save_pretrained(directory)
    return directory / "config.json"


def config_of(directory, rows, *, template=CHATML, train=None, data=None, **sections):
    """The values of a config, as the cases have them."""
    return {
        "model": {"source": str(write_model(directory, template)), "dtype": "float32"},
        "adapter": {"method": "lora", "r": 4, "lora_alpha": 8},
        "data": {"train": write_jsonl(directory / "data.jsonl", rows), "max_length": 1024}
        | (data or {}),
        "train": {"max_steps": 2, "batch_size": 2, "precision": "no"} | (train or {}),
        "run_dir": str(directory / "run"),
        "samples": 2,
    } | sections


def learned(directory, messages, template=CHATML, **columns):
    """Return what a chat run reads of one dialogue, and what it learns of it."""
    values = config_of(directory, [{"messages": messages} | columns], template=template)
    recipe = load_recipe(recipe_named("chat"))
    task = recipe.make_task(build(recipe.Config, values, "a test"))
    (example,) = task.examples(task.read(values["data"]["train"]))
    answers = [number for number in example.labels if number != IGNORED]
    return task.processor.decode(example.input_ids), task.processor.decode(answers)


def lines_of(directory, kind):
    return [line for line in read_metrics(directory / "metrics.jsonl") if line["kind"] == kind]


def test_case_01_tools_are_read_and_not_learned(tmp_path):
    read, answers = learned(tmp_path, called(""), WITH_TOOLS, tools=[TOOL])
    assert "Height of the tide" in read
    assert "Height of the tide" not in answers
    assert '<tool_call>{"name": "tide"' in answers


def test_case_01_tools_that_the_template_does_not_render_are_refused(tmp_path):
    rows = [{"messages": [user("a"), assistant("b")], "tools": [TOOL]}]
    with pytest.raises(DataError, match=r"data\.jsonl, row 1: .*tools"):
        run("chat", config_of(tmp_path, rows))


def test_case_02_a_dialogue_that_the_template_refuses_is_named(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    rows = [
        {"messages": [user("Hello"), assistant("Hi")]},
        {"messages": [system, user("Hello"), assistant("Hi")]},
    ]
    with pytest.raises(DataError, match=r"data\.jsonl, row 2: .*no system role here"):
        run("chat", config_of(tmp_path, rows, template=WITHOUT_SYSTEM))


def test_case_03_a_dialogue_that_the_assistant_opens_teaches_its_greeting_alone(tmp_path):
    messages = [assistant("Welcome."), user("When is high tide?"), assistant("At noon.")]
    read, answers = learned(tmp_path, messages)
    assert "You help at the harbour." in read
    assert answers == "Welcome.<|im_end|>At noon.<|im_end|>"


def test_case_04_one_step_on_400_rows_reads_two_of_them_and_measures_256(
    tmp_path, monkeypatch, capsys
):
    from peftkit.tasks.causal_lm import CausalLMTask

    encoded = []
    encode = CausalLMTask.encode

    def counted(self, rows, counts):
        encoded.append(len(rows))
        return encode(self, rows, counts)

    monkeypatch.setattr(CausalLMTask, "encode", counted)
    rows = [{"messages": [user(f"q{i}?"), assistant("tide " * (i % 5 + 1))]} for i in range(400)]
    directory = run("chat", config_of(tmp_path, rows, train={"max_steps": 1}))
    assert len(lines_of(directory, "train")) == 1
    assert encoded == [2, 256]
    printed, report = capsys.readouterr().err, (directory / "report.md").read_text()
    for sentence in (
        "Measured on 256 of the 400 training rows: none were held out.",
        "train.max_steps needs 2 of the 400 rows: they are drawn at random.",
    ):
        assert sentence in printed
        assert sentence in report


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_case_05_noisy_copies_keep_line_separators(tmp_path, separator):
    rows = [
        {"text": f"a bad day{separator}{i} no", "label": "neg"} if i % 2 else
        {"text": f"a fine day {i} and more", "label": "pos"}
        for i in range(6)
    ]  # fmt: skip
    noise = {"copies": 1, "word_dropout": 0.2}
    directory = run("text_classification", config_of(tmp_path, rows, augment=noise))
    kept = (directory / "augmented_rows.jsonl").read_text().split("\n")
    texts = [json.loads(line)["text"] for line in kept if line]
    assert texts[:6] == [row["text"] for row in rows]
    assert len(texts) == 12


def test_case_05_a_teacher_keeps_line_separators(tmp_path):
    rows = [{"text": f"a\u2028day {i}", "label": "neg" if i % 2 else "pos"} for i in range(6)]
    teacher = run("text_classification", config_of(tmp_path, rows))
    values = config_of(tmp_path, rows, teacher={"runs": [str(teacher)]})
    values["run_dir"] = str(tmp_path / "student")
    student = run("text_classification", values)
    kept = (student / "training_rows.jsonl").read_text().split("\n")
    assert [json.loads(line)["text"] for line in kept if line] == [row["text"] for row in rows]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("Is the ferry late?"), assistant("")]},
        {"messages": [user("Which pier?"), assistant("   ")]},
        {"prompt": "Which pier?", "completion": ""},
    ],
)
def test_case_08_an_empty_answer_is_refused(tmp_path, row):
    right: dict[str, object] = {"messages": [user("When?"), assistant("At noon.")]}
    if "prompt" in row:
        right = {"prompt": "When?", "completion": "At noon."}
    with pytest.raises(DataError, match=r"data\.jsonl, row 2: .*empty"):
        run("chat", config_of(tmp_path, [right, row]))


@pytest.mark.parametrize("tag", [None, 1.5, ["O"]])
def test_case_09_a_tag_that_is_no_text_is_refused(tmp_path, tag):
    rows = [{"tokens": ["Ada", "sailed"], "tags": ["B-PER", each]} for each in ("O", tag)]
    with pytest.raises(DataError, match=r"data\.jsonl, row 2: "):
        run("token_classification", config_of(tmp_path, rows))


def test_case_09_a_whole_number_is_the_same_tag_however_it_is_written(tmp_path):
    rows = [{"tokens": ["Ada", "sailed"], "tags": ["7", each]} for each in (1, 1.0)]
    directory = run("token_classification", config_of(tmp_path, rows))
    assert read_json(directory / "task.json")["learned"]["labels"] == ["1", "7"]


def test_case_11_null_beside_a_call_is_an_empty_text(tmp_path):
    read, answers = learned(tmp_path, called(None), WITH_TOOLS, tools=[TOOL])
    assert "None" not in read
    assert "null" not in read
    assert answers.startswith("<tool_call>")


def test_case_11_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]
    _, answers = learned(tmp_path, [user(parts), assistant(parts)])
    assert answers == "Hi you<|im_end|>"


def test_case_12_half_a_character_is_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    values = config_of(tmp_path, [{"messages": [user("Hi"), assistant("Hi")]}])
    row = {"messages": [user("half an emoji \ud83d here"), assistant("ok")]}
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"data\.jsonl, row 1: "):
        run("chat", values)


@pytest.mark.parametrize(
    ("messages", "lost"),
    [
        (called(""), "tool_calls"),
        ([user("a"), assistant("b", reasoning_content="hm")], "reasoning_content"),
    ],
)
def test_case_15_what_the_template_does_not_render_is_refused(tmp_path, messages, lost):
    with pytest.raises(DataError, match=rf"data\.jsonl, row 1: .*{lost}"):
        run("chat", config_of(tmp_path, [{"messages": messages}]))


@pytest.mark.parametrize("name", ["chat", "causal_lm", "text_classification"])
def test_case_17_a_tokenizer_without_pad_and_end_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, name
):
    def load(*arguments, **options):
        raise AssertionError("the model is not needed to see this")

    monkeypatch.setattr("peftkit.load_backbone", load)
    rows: list[dict[str, object]] = [
        {"text": "fine", "label": "pos"},
        {"text": "bad", "label": "neg"},
    ]
    if name == "chat":
        rows = [{"messages": [user("Hi"), assistant("Hi")]}]
    values = config_of(tmp_path, rows)
    write_model(tmp_path, pad_token=None, eos_token=None)
    with pytest.raises((ConfigError, DataError), match=r"no end-of-sequence token|pad"):
        run(name, values)


def test_case_19_max_steps_wins_over_epochs(tmp_path):
    rows = [{"text": f"a day {i}", "label": "neg" if i % 2 else "pos"} for i in range(12)]
    train = {"max_steps": 50, "epochs": 1, "save_every": 0.5}
    directory = run("text_classification", config_of(tmp_path, rows, train=train))
    steps = lines_of(directory, "train")
    assert [line["step"] for line in steps] == list(range(1, 51))
    rates = [line["learning_rate"] for line in steps]
    assert rates.index(max(rates)) < 5  # the warm-up
    assert min(rates[-1:]) < 0.01 * max(rates)  # the cosine ends with the last step
    assert read_json(directory / "rows.json")["training"] == 12


def test_errors_in_rows_are_found_before_the_model_is_loaded(tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("the rows come first")

    monkeypatch.setattr("peftkit.load_backbone", load)
    values = config_of(
        tmp_path, [{"text": "a", "label": "up"}, {"text": "b", "label": "down"}],
        data={"evaluation": write_jsonl(tmp_path / "held.jsonl", [{"text": "c", "label": "dwn"}])},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"held\.jsonl, row 1: the label 'dwn' .*'down'"):
        run("text_classification", values)
