import subprocess
import sys
import types
from collections import Counter

import pytest

from peftkit.config.task_sections import AugmentSettings
from peftkit.data.augmentation import augment_rows
from peftkit.errors import ConfigError, DataError

TEXT = "the quick brown fox jumps over the lazy dog while nobody looks"
ROWS = [
    {"text": TEXT, "label": "a"},
    {"text": "one", "label": "b"},
    {"text": "two words", "label": "c", "id": 3},
]
DROPOUT = AugmentSettings(copies=3, word_dropout=0.4)


@pytest.fixture
def functions(monkeypatch):
    module = types.ModuleType("backtranslation")
    monkeypatch.setitem(sys.modules, "backtranslation", module)
    module.upper = str.upper
    module.several = lambda text: [text + " A", text + " B"]
    module.number = 7
    module.broken = lambda text: None
    module.empty = lambda text: [" "]
    return module


def copies(rows, settings, seed=0, columns=("text",)):
    return list(augment_rows(rows, columns, settings, seed))[len(rows) :]


def test_the_rows_come_first_as_they_were_and_copies_keep_all_but_the_text():
    rows = augment_rows(ROWS, ["text"], DROPOUT, 0)
    assert rows[:3] == ROWS
    assert [(row["label"], row.get("id")) for row in rows[3:]] == [("a", None)] * 3 + [
        ("b", None)
    ] * 3 + [("c", 3)] * 3
    assert augment_rows(ROWS, ["text"], AugmentSettings(), 0) == ROWS


def test_word_dropout_leaves_out_words_at_its_rate_and_keeps_their_order():
    found = [
        row["text"].split()
        for row in copies([{"text": TEXT}], AugmentSettings(copies=400, word_dropout=0.3))
    ]
    words = TEXT.split()
    assert sum(map(len, found)) / (400 * len(words)) == pytest.approx(0.7, abs=0.03)
    for each in found:
        rest = iter(words)
        assert all(word in rest for word in each)


def test_no_text_becomes_empty():
    settings = AugmentSettings(copies=50, word_dropout=0.99, character_noise=1.0)
    assert all(row["text"].strip() for row in copies(ROWS, settings))
    assert all(row["text"] == " " for row in copies([{"text": " "}], settings))


@pytest.mark.parametrize(("share", "most"), [(0.01, 1), (0.25, 3)])
def test_swaps_exchange_neighbours(share, most):
    for row in copies([{"text": TEXT}], AugmentSettings(copies=50, swaps=share)):
        assert Counter(row["text"].split()) == Counter(TEXT.split())
        moved = sum(a != b for a, b in zip(row["text"].split(), TEXT.split(), strict=True))
        assert 0 <= moved <= 2 * most
        assert most > 1 or moved == 2


def test_noise_leaves_white_space_where_it_is():
    for row in copies([{"text": "a b\nc  d"}], AugmentSettings(copies=5, swaps=1.0)):
        assert [character for character in row["text"] if character.isspace()] == [
            " ",
            "\n",
            " ",
            " ",
        ]


def test_character_noise_changes_letters_alone():
    found = copies([{"text": "price 12.50 euro"}], AugmentSettings(copies=30, character_noise=0.5))
    assert all("12.50" in row["text"] for row in found)
    assert len({row["text"] for row in found}) > 15
    assert set("".join(row["text"] for row in found)) <= set("price 12.50 euro")


def test_each_chinese_character_is_a_word_for_noise():
    text = "今天天气很好我们去公园吧"
    for row in copies([{"text": text}], AugmentSettings(copies=20, word_dropout=0.3)):
        rest = iter(text)
        assert all(character in rest for character in row["text"])
    swapped = [
        row["text"] for row in copies([{"text": text}], AugmentSettings(copies=20, swaps=0.1))
    ]
    assert all(Counter(each) == Counter(text) for each in swapped)
    assert any(each != text for each in swapped)
    mixed = copies([{"text": "我用 Python 编程"}], AugmentSettings(copies=30, word_dropout=0.3))
    assert all("Python" in row["text"] or "P" not in row["text"] for row in mixed)


def test_a_copy_depends_on_its_text_the_seed_and_nothing_else():
    alone = copies(ROWS[:1], DROPOUT)
    assert copies(ROWS[::-1], DROPOUT)[-3:] == alone
    assert copies(ROWS[:1], DROPOUT, seed=1) != alone
    assert len({row["text"] for row in alone}) > 1
    program = (
        "from tests.data.test_augmentation import *; "
        "print([row['text'] for row in copies(ROWS[:1], DROPOUT)])"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == str([row["text"] for row in alone])


def test_each_column_gets_its_own_noise():
    row = {"text": TEXT, "text_pair": TEXT}
    [found] = copies(
        [row], AugmentSettings(copies=1, word_dropout=0.4), columns=("text", "text_pair")
    )
    assert found["text"] != found["text_pair"]


def test_a_function_rewrites_each_copy(functions):
    settings = AugmentSettings(copies=2, function="backtranslation:upper")
    assert [row["text"] for row in copies(ROWS[2:], settings)] == ["TWO WORDS"] * 2
    noisy = copies(
        ROWS[:1], AugmentSettings(copies=2, function="backtranslation:upper", word_dropout=0.4)
    )
    assert all(
        row["text"] != TEXT.upper() and set(row["text"].split()) <= set(TEXT.upper().split())
        for row in noisy
    )
    several = copies(ROWS[2:], AugmentSettings(copies=20, function="backtranslation:several"))
    assert {row["text"] for row in several} == {"two words A", "two words B"}


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("backtranslation", ConfigError, "must be package.module:name"),
        ("no_such_module:f", ConfigError, "cannot be imported: No module named 'no_such_module'"),
        ("backtranslation:nothing", ConfigError, "cannot be imported.*no attribute 'nothing'"),
        ("backtranslation:number", ConfigError, "is int, which cannot be called"),
        (
            "backtranslation:broken",
            DataError,
            "returned None; it must return a text or a list of texts",
        ),
        ("backtranslation:empty", DataError, "returned"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_in_one_clear_sentence(
    functions, function, error, message
):
    with pytest.raises(error, match=message):
        copies(ROWS, AugmentSettings(copies=1, function=function))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b", "spans": []}, "row 2: there is 'spans'"),
        ({"text": "a b", "tokens": ["a", "b"]}, "row 2: there is 'tokens'"),
        ({"text": None}, "row 2: 'text' is None"),
    ],
)
def test_rows_whose_positions_noise_would_move_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        list(augment_rows([*ROWS[:1], row], ["text"], DROPOUT, 0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"copies": 1}, "would repeat the rows as they are"),
        ({"word_dropout": 0.1}, "no noisy copies"),
        ({"function": "a:b"}, "no noisy copies"),
        ({"copies": 1, "word_dropout": 1.0}, "less than 1"),
        ({"copies": -1, "swaps": 0.1}, "greater than or equal to 0"),
    ],
)
def test_augment_settings_without_effect_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**values)
