import pytest

from peftkit.data.lint.items import LintItem
from peftkit.data.lint.scripts import find_lookalikes, find_odd_scripts, script_of

ENGLISH = "The train leaves at nine."
RUSSIAN = "Поезд отправляется в девять часов."


def items(*texts):
    return [LintItem(f"a.jsonl, row {number}", text) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (ENGLISH, "Latin"),
        ("Größe, façade, žluťoučký kůň", "Latin"),
        (RUSSIAN, "Cyrillic"),
        ("Το τρένο φεύγει στις εννέα", "Greek"),
        ("火车早上九点从北京开往上海", "Chinese"),
        ("電車は朝九時に東京を出発します", "Japanese"),
        ("这家酒店の早餐很好吃、下次还会来", "Chinese"),
        (
            "原文见 https://example.org/a-long-address/that-has-many-letters 里面很详细的内容",
            "Chinese",
        ),
        ("기차는 아침 아홉 시에 출발합니다", "Korean"),
        ("القطار يغادر في التاسعة صباحا", "Arabic"),
        ("नमस्ते दुनिया, रेलगाड़ी सुबह नौ बजे चलती है", "Devanagari"),
        ("😀😀😀😀😀😀😀😀😀😀😀😀", None),
        ("1234567890 + 0.5", None),
        ("𝔸𝔹ℂ 𝛼𝛽𝛾 𝒜𝒷𝒸𝒹", None),
        ("Hello, 世界你好世界你好世界", None),
        ("ok", None),
    ],
)
def test_a_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


def test_few_rows_in_another_script_are_found():
    (finding,) = find_odd_scripts(items(*[ENGLISH] * 30, RUSSIAN))
    assert (finding.count, finding.rows) == (1, ("a.jsonl, row 31",))
    assert finding.what == "row is in Cyrillic letters, and most are in Latin ones"


@pytest.mark.parametrize(
    "texts",
    [
        [ENGLISH] * 5 + [RUSSIAN] * 5,
        [ENGLISH] * 30 + ["😀" * 20, "2 + 2 = 4", "It is called поезд there, or τρένο."],
        [ENGLISH] * 30 + ["Größe und Übermaß, żółć, naïveté"],
        [RUSSIAN],
        [],
    ],
)
def test_scripts_in_equal_parts_emoji_and_single_words_are_not_found(texts):
    assert find_odd_scripts(items(*texts)) == []


@pytest.mark.parametrize("text", ["Log in to p\u0430ypal now", "это Mо\u0441ква и c\u043eлнце"])
def test_a_word_with_letters_of_two_scripts_that_look_alike_is_found(text):
    assert find_lookalikes(items(text))[0].count == 1


@pytest.mark.parametrize(
    "text",
    ["USB-порт и Wi-Fi'ем", "отправил SMSку", "5 μm, β-carotene, Δx", "naïve café", "ВМО и COP"],
)
def test_words_that_mix_scripts_on_purpose_are_not_found(text):
    assert find_lookalikes(items(text)) == []
