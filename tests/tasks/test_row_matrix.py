"""Recipes that read tables x what people write in them: what is learned of a row, by hand.

An input stays as it is. `Refused` and `Empty` hold the sentence that says why a row is refused;
`data.skip_empty` leaves an `Empty` one out.
"""

import functools
import json

import pytest

from peftkit.config.reading import build
from peftkit.errors import ConfigError, DataError, EmptyRowError
from peftkit.labels import IGNORED
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import MODELS, image_row, sound_row

ODD = "naïve \u2028 👩\u200d👩 e\u0301 \ufeff \x85 a\xa0b"
HALF = "good \ud83d film"
HALF_SAID = r"half of a surrogate pair \(\\ud83d\)"


class Refused(str):
    """The sentence about a row that is wrong."""


class Empty(str):
    """The sentence about a row that has nothing to learn from."""


def missing(name):
    return Empty(f"{name} is missing: leave the row out, or set data.skip_empty")


def blank(name):
    return Empty(f"{name} is blank: leave the row out, or set data.skip_empty")


def span(start, end, label):
    return {"start": start, "end": end, "label": label}


def texts(column):
    """What is true of every column of texts that are read or written."""
    return [
        (column, None, missing(f"'{column}'")),
        (column, "", blank(f"'{column}'")),
        (column, " \t\u3000\n", blank(f"'{column}'")),
        (column, True, Refused(f"'{column}' is True; it must be a text")),
        (column, 1.0, Refused(f"'{column}' is 1.0; it must be a text")),
        (column, 0.5, Refused(f"'{column}' is 0.5; it must be a text")),
        (column, ["good"], Refused(rf"'{column}' is \['good'\]; it must be a text")),
        (column, "5", "5"),
        (column, "None", "None"),
        (column, ODD, ODD),
        (column, HALF, Refused(f"'{column}' holds {HALF_SAID}")),
    ]


LABELS = [
    ("label", None, missing("the label")),
    ("label", "", blank("the label")),
    ("label", " ", blank("the label")),
    ("label", True, "true"),
    ("label", False, "false"),
    ("label", 1, "1"),
    ("label", 1.0, "1"),
    ("label", 0.5, Refused("'label' is 0.5; it must be a text or a whole number")),
    ("label", ["up"], Refused(r"'label' is \['up'\]; it must be a text or a whole number")),
    ("label", "10", "10"),
    ("label", "Up ", "Up "),
    ("label", "None", "None"),
    ("label", ODD, ODD),
    ("label", HALF, Refused(f"'label' holds {HALF_SAID}")),
]
SCORES = [
    ("score", None, missing("the score")),
    ("score", "", blank("the score")),
    ("score", True, Refused("'score' is True; it must be a number")),
    ("score", 2.0, 2.0),
    ("score", 2, 2.0),
    ("score", 0.5, 0.5),
    ("score", "0.5", 0.5),
    ("score", "3,5", Refused("'score' is '3,5'; it must be a number, with a point before")),
    ("score", "abc", Refused("'score' is 'abc'; it must be a number")),
    ("score", HALF, Refused(r"'score' is 'good \\ud83d film'; it must be a number")),
]
TAGS = [
    ("tags", None, Refused("there are 2 tokens and no tags")),
    ("tags", [], Refused("there are 2 tokens and 0 tags")),
    ("tags", ["O", None], Refused("the tag of word 2, 'film', is None; it must be a text or a")),
    ("tags", ["O", ""], Refused("the tag of word 2, 'film', is ''; it must be a text or a")),
    ("tags", [" ", "O"], Refused("the tag of word 1, 'good', is ' '; it must be a text or a")),
    ("tags", [True, "O"], Refused("the tag of word 1, 'good', is True; it must be a text or")),
    ("tags", [0.5, "O"], Refused("the tag of word 1, 'good', is 0.5; it must be a text or a")),
    ("tags", [["B-X"], "O"], Refused(r"the tag of word 1, 'good', is \['B-X'\]; it must be")),
    ("tags", [1.0, 2], ["1", "2"]),
    ("tags", ["10", "9"], ["10", "9"]),
    ("tags", ["B-é\u2028", "None"], ["B-é\u2028", "None"]),
    ("tags", [HALF, "O"], Refused(f"the tag of word 1, 'good', holds {HALF_SAID}")),
    ("tags", '["B-X", "O"]', ["B-X", "O"]),
    ("tokens", None, Empty("neither 'tokens' .* nor 'text' .*: leave the row out")),
    ("tokens", [], Empty("'tokens' holds no words: leave the row out, or set data.skip_empty")),
    ("tokens", ["a", ""], Refused("word 2 is empty; leave it out, and its tag")),
    ("tokens", ["a", None], Refused("word 2 is None; it must be a text")),
    ("tokens", [True, "a"], Refused("word 1 is True; it must be a text")),
    ("tokens", ["a", 1.0], Refused("word 2 is 1.0; it must be a text")),
    ("tokens", ["a", "5"], ["a", "5"]),
    ("tokens", ["é\u2028", "👩\u200d👩"], ["é\u2028", "👩\u200d👩"]),
    ("tokens", ["a", HALF], Refused(f"word 2 holds {HALF_SAID}")),
]
SPANS = [
    ("spans", None, Refused("'spans' is None; it must be a list")),
    ("spans", [], ["O", "O"]),
    ("spans", [span(0, 4, None)], Refused("the label of the span from 0 is None; it must be")),
    ("spans", [span(0, 4, "")], Refused("the label of the span from 0 is ''; it must be")),
    ("spans", [span(0, 4, True)], Refused("the label of the span from 0 is True; it must be")),
    ("spans", [span(0, 4, 0.5)], Refused("the label of the span from 0 is 0.5; it must be")),
    ("spans", [span(0, 4, 7.0)], ["B-7", "O"]),
    ("spans", [[5, 9, "None"]], ["O", "B-None"]),
    ("spans", [span(0, 9, "é\u2028")], ["B-é\u2028", "I-é\u2028"]),
    ("spans", [span(0, 4, HALF)], Refused(f"the label of the span from 0 holds {HALF_SAID}")),
    ("spans", [span(0.0, 4, "X")], Refused("is not {start, end, label} within the 9 characters")),
    ("spans", [span(False, 4, "X")], Refused("is not {start, end, label} within the 9")),
    ("text", None, Empty("neither 'tokens' .* nor 'text' .*: leave the row out")),
    *[case for case in texts("text") if case[1] is not None],
]


def files(column):
    return [
        (column, None, missing(f"'{column}'")),
        (column, " ", blank(f"'{column}'")),
        (column, True, Refused(f"'{column}' is True; it must be the path of a file")),
        (column, 1.0, Refused(f"'{column}' is 1.0; it must be the path of a file")),
        (column, HALF, Refused(f"'{column}' holds {HALF_SAID}")),
        (column, ODD, Refused("there is no file /.*naïve")),
        (column, ".", Refused(f"is a directory; '{column}' must name a file")),
        (column, "https://example.org/a", Refused("is the address .*: download the file")),
    ]


# The recipe, its rows (the last one is changed), and the cases.
MATRIX = {
    "text_classification": (
        [{"text": "good film", "label": "up"}, {"text": "bad film", "label": "down"}],
        [*texts("text"), *LABELS],
    ),
    "text_pair": (
        [
            {"text": "good film", "other": "a", "label": "up"},
            {"text": "bad film", "other": "b", "label": "down"},
        ],
        [*texts("text"), *texts("other"), *LABELS],
    ),
    "text_pair score": (
        [
            {"text": "good film", "other": "a", "score": 1},
            {"text": "bad film", "other": "b", "score": 4.5},
        ],
        [*texts("text"), *texts("other"), *SCORES],
    ),
    "token_classification tags": (
        [
            {"tokens": ["Ada", "ran"], "tags": ["B-PER", "O"]},
            {"tokens": ["good", "film"], "tags": ["O", "O"]},
        ],
        TAGS,
    ),
    "token_classification spans": (
        [
            {"text": "Ada ran", "spans": [span(0, 3, "PER")]},
            {"text": "good film", "spans": []},
        ],
        SPANS,
    ),
    "seq2seq": (
        [{"source": "say 1", "target": "sage 1"}, {"source": "good film", "target": "guter Film"}],
        [*texts("source"), *texts("target")],
    ),
    "image_classification": (
        [{"image": "0-red.png", "label": "up"}, {"image": "1-blue.png", "label": "down"}],
        [*files("image"), *LABELS],
    ),
    "speech_recognition": (
        [{"audio": "0-low.wav", "text": "low"}, {"audio": "1-high.wav", "text": "high"}],
        [*files("audio"), *[case for case in texts("text") if case[2] not in ("5", "None", ODD)]],
    ),
}
CASES = [(name, *case) for name, (_, cases) in MATRIX.items() for case in cases]
SOURCES = {
    "seq2seq": "bart-bytes",
    "image_classification": "vit-digits",
    "speech_recognition": "whisper-tones",
}


def make_task(recipe_name, **data):
    source = MODELS / SOURCES.get(recipe_name, "char-bert-zh") / "config.json"
    values = {"model": {"source": str(source)}, "data": {"train": "x"} | data, "run_dir": "x"}
    recipe = load_recipe(recipe_named(recipe_name))
    return recipe.make_task(build(recipe.Config, values, "a test"))


@functools.cache
def task_of(name):
    recipe_name, *target = name.split()
    return make_task(recipe_name, **({"target": "score"} if target == ["score"] else {}))


@pytest.fixture
def task(request):
    found = task_of(request.param)
    found.learned = {}
    return found


@pytest.fixture
def write(tmp_path):
    for number, name in enumerate(["red", "blue"]):
        image_row(tmp_path, number, name)
    for number, name in enumerate(["low", "high"]):
        sound_row(tmp_path, number, name)

    def write_rows(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


def learned_of(task, example):
    """What an example teaches, as the row has it."""
    if hasattr(example, "label"):
        if "mean" in task.learned:
            return example.label * task.learned["deviation"] + task.learned["mean"]
        return task.learned["labels"][example.label]
    numbers = [number for number in example.labels if number != IGNORED]
    if "labels" in task.learned:
        return [task.learned["labels"][number] for number in numbers]
    return task.tokenizer.decode(numbers, skip_special_tokens=True).strip()


@pytest.mark.parametrize(("task", "column", "value", "expected"), CASES, indirect=["task"])
def test_a_value_is_learned_as_it_is_meant_or_refused(
    task, column, value, expected, write, request
):
    rows, _ = MATRIX[request.node.callspec.params["task"]]
    path = write([*rows, rows[-1] | {column: value}])
    if isinstance(expected, Refused | Empty):
        kind = EmptyRowError if isinstance(expected, Empty) else DataError
        with pytest.raises(kind, match=rf"rows\.jsonl, row 3: .*{expected}") as raised:
            list(task.read(path))
        assert type(raised.value) is kind
        return
    found = task.read(path)
    task.fit(found)
    examples = task.examples(found)
    is_read = column in ("source", "other", "tokens") or (column, hasattr(task, "metrics")) == (
        "text",
        False,
    )
    if is_read:
        assert found[2][column] == expected
    else:
        assert learned_of(task, examples[2]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "column"),
    [(name, column) for name, (rows, _) in MATRIX.items() for column in rows[0]],
    indirect=["task"],
)
def test_a_column_that_is_called_otherwise_is_named_in_a_line_to_copy(task, column, write, request):
    rows, _ = MATRIX[request.node.callspec.params["task"]]
    renamed = []
    for row in rows:
        renamed.append({f"my_{name}" if name == column else name: row[name] for name in row})
    with pytest.raises(DataError, match=rf"set data\.columns: {{.*{column}: my_{column}.*}}"):
        task.read(write(renamed))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("text_classification", {"label": "Up"}, "the label 'Up' is none of down, up"),
        ("text_pair", {"label": 1}, "the label '1' is none of down, up"),
        ("image_classification", {"label": True}, "the label 'true' is none of down, up"),
        (
            "token_classification tags",
            {"tags": ["B-PRE", "O"]},
            "the tag 'B-PRE' is none of O, B-P",
        ),
        (
            "token_classification spans",
            {"spans": [span(0, 4, "LOC")]},
            "the tag 'B-LOC' is none of O, B-PER",
        ),
    ],
    indirect=["task"],
)
def test_an_unknown_held_out_class_is_named_with_its_row(task, change, message, write, request):
    rows, _ = MATRIX[request.node.callspec.params["task"]]
    task.fit(task.read(write(rows)))
    held_out = task.read(write([*rows, rows[-1] | change], "held_out.jsonl"))
    with pytest.raises(DataError, match=rf"held_out\.jsonl, row 3: {message}"):
        task.examples(held_out)


@pytest.mark.parametrize("task", MATRIX, indirect=True)
def test_rows_to_predict_need_no_targets_and_may_be_blank(task, write, request):
    rows, _ = MATRIX[request.node.callspec.params["task"]]
    targets = ("label", "score", "tags", "spans", "target")
    inputs = []
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in targets}
        inputs.append(kept if "audio" not in row else {"audio": row["audio"]})
    found = list(task.read(write(inputs), labelled=False))
    assert [set(row) for row in found] == [set(row) for row in inputs]
    for column in set(inputs[0]) & {"text", "other", "source"}:
        [row] = task.read(write([inputs[0] | {column: " "}]), labelled=False)
        assert row[column] == " "


def test_labels_that_likely_mean_the_same_are_said(write):
    task = task_of("text_classification")
    task.learned = {}
    labels = ["billing", "billing", "Billing ", "bug", "BUG", "bug"]
    task.fit(task.read(write([{"text": "a", "label": label} for label in labels])))
    assert task.learned["labels"] == ["BUG", "Billing ", "billing", "bug"]
    assert [note.partition(" only")[0] for note in task.notes] == [
        "the label 'Billing ' (rows: 1) differs from 'billing' (rows: 2)",
        "the label 'BUG' (rows: 1) differs from 'bug' (rows: 2)",
    ]


def test_labels_may_be_given_names_and_labels_with_one_name_are_one_class(write):
    names = {0: "bad", True: "good", "1": "good", "Good ": "good", "never": "missing"}
    task = make_task("text_classification", label_names=names)
    labels = [0, True, 1, "Good ", "other"]
    task.fit(task.read(write([{"text": "a", "label": label} for label in labels])))
    assert task.learned["labels"] == ["bad", "good", "other"]
    assert task.learned["counts"] == [1, 3, 1]
    assert task.notes == ["data.label_names gives 'never' a name, and no row has that label"]


def test_tags_that_are_numbers_may_be_given_the_names_of_entities(write):
    task = make_task("token_classification", label_names={0: "O", 1: "B-PER", 2: "I-PER"})
    rows = task.read(write([{"tokens": ["Ada", "King", "ran"], "tags": [1, 2.0, 0]}]))
    task.fit(rows)
    assert task.learned["labels"] == ["O", "B-PER", "I-PER"]
    assert not task.notes
    task = make_task("token_classification", label_names={"person": "PER"})
    spans = [span(0, 3, "person"), span(4, 7, "PER")]
    task.fit(task.read(write([{"text": "Ada Bob ran", "spans": spans}])))
    assert task.learned["labels"] == ["O", "B-PER"]
    assert not task.notes


def test_names_that_would_change_with_each_reading_are_refused():
    with pytest.raises(ConfigError, match="'1' is the name of '0', and has another name itself"):
        make_task("text_classification", label_names={0: "1", 1: "0"})
    with pytest.raises(ConfigError, match=r"data\.label_names is for labels"):
        make_task("text_pair", label_names={0: "a"}, target="score")
