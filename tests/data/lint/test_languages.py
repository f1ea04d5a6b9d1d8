import sys

import pytest

from peftkit.data.lint import languages
from peftkit.data.lint.items import LintItem, NotDoneError
from peftkit.data.lint.languages import find_odd_languages

ENGLISH = [
    "Hello, I would like to know why my order is not here although I paid two weeks ago.",
    "Could you please tell me how I can change the password of my account, since I cannot log in?",
    "The new lamp flickers every evening when the heating goes on, and I would like to return it.",
    "lol idk why this thing never works bro, i tried ten times and it keeps crashing every day",
]
OTHERS = {
    "de": "Bitte schicken Sie mir die Rechnung für den letzten Monat noch einmal zu, ich habe sie "
    "leider nicht erhalten und brauche sie für die Steuer.",
    "fr": "Bonjour, je voudrais savoir pourquoi ma commande n'est toujours pas arrivée alors que "
    "je l'ai payée il y a deux semaines.",
    "nl": "Kunt u mij alstublieft vertellen hoe ik mijn wachtwoord kan veranderen, want ik kan al "
    "drie dagen niet meer inloggen.",
}


def items(*texts):
    return [LintItem(f"a.jsonl, row {number}", text) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize("language", OTHERS)
def test_a_row_in_another_language_of_the_same_script_is_found(language):
    (finding,) = find_odd_languages(items(*ENGLISH * 5, OTHERS[language]))
    assert (finding.count, finding.rows) == (1, ("a.jsonl, row 21",))
    assert f"in another language ({language}) than most (en)" in finding.what


def test_an_answer_in_another_language_is_found():
    rows = [
        LintItem(f"a, row {number}", "?", answer=text) for number, text in enumerate(ENGLISH * 5, 1)
    ]
    rows.append(LintItem("a, row 21", ENGLISH[0], answer=OTHERS["de"]))
    (finding,) = find_odd_languages(rows)
    assert finding.sentence.startswith("1 of 21 answers is in another language (de)")


@pytest.mark.parametrize(
    "text",
    [
        "def add(a, b): return a + b for i in range(10): print(add(i, i)); import os",
        "SELECT id, name, price FROM products WHERE price > 10 AND kind = 'book' ORDER BY price",
        '{"name": "get_weather", "arguments": {"city": "Berlin", "unit": "celsius"}, "id": "1"}',
        "Giovanni Rossi, Maria Bianchi, Luca Ferrari, Anna Esposito, Paolo Romano, Giulia Colombo, "
        "Marco Ricci, Elena Marino, Andrea Greco, Chiara Bruno, Francesca Gallo, Matteo Conti",
        "The sentence 'Bitte schicken Sie mir die Rechnung' means that somebody asks you to send "
        "the invoice again, please.",
        "Guten Tag",
    ],
)
def test_code_names_quotations_and_short_texts_are_in_no_other_language(text):
    assert find_odd_languages(items(*ENGLISH * 5, text)) == []


def test_data_in_two_languages_is_meant_so():
    assert find_odd_languages(items(*ENGLISH * 2, *OTHERS.values())) == []


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._load_model.cache_clear()
    with pytest.raises(NotDoneError, match="languages were not looked for: pip install"):
        find_odd_languages([])
