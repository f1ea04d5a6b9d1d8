import sys

import pytest

from peftkit.data.lint.items import LintItem, NotDoneError
from peftkit.data.lint.personal_data import (
    find_bank_numbers,
    find_email_addresses,
    find_phone_numbers,
)


def rows_with(find, *texts):
    """Return the texts that a check finds."""
    return [text for text in texts if find([LintItem("rows.jsonl, row 1", text)])]


@pytest.mark.parametrize(
    "text",
    [
        "Write to anna.schmidt@uni-koeln.de today.",
        "mailto:j_doe99@mail.example-hospital.org",
        "His address is <li.wei@163.com>.",
        "E-Mail:pierre+bank@orange.fr",
        "请联系 wang@qq.com 谢谢",
    ],
)
def test_an_email_address_is_found(text):
    assert rows_with(find_email_addresses, text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "Thanks @anna, see you @ 5 p.m.",
        "scores = q@k.transpose(-2, -1) / x@w.mean()",
        "Use icon@2x.png and lodash@4.17.21 here.",
        "Send it to jane@example.com or your.name@company.com.",
        "git clone git@github.com:owner/name",
        "postgres://app:secret@db.internal.net/orders",
        "Our office is at info@museum-berlin.de.",
        "a" * 5_000 + "@",
    ],
)
def test_what_only_looks_like_an_email_address_is_not_found(text):
    assert rows_with(find_email_addresses, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "Call +49 30 901820 tomorrow.",
        "My number is +1 415-867-5309.",
        "+44 20 7946 0958",
        "tel:+33142685300",
        "Call +49 30 901820 2 times at most.",
        "Call me at (212) 736-5000, please.",
        "Fax 415-867-5309",
        "415.867.5309",
    ],
)
def test_a_phone_number_is_found(text):
    assert rows_with(find_phone_numbers, text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "It costs $1,299.00, or 1.299,00 EUR, which is +12.50 more.",
        "On 2024-03-12 at 12:30:45, from 10.12.2023 to 11/12/2023.",
        "Order 4158675309 and invoice 2024-0098-12345.",
        "Part 123-456-7890 and section 12.345.6789",
        "The server is 192.168.100.200 or 10.0.0.1.",
        "ISBN 978-0-306-40615-7, DOI 10.1000/182",
        "2024-01-01T00:00:00+0530 and x = a+4930901820",
        "a fictional 212-555-0123, on the screen",
        "id 3f2a-415-867-5309-b1",
        "+0 123 456 789 and +999 12 345 678",
        "$415-867-5309 and 415-867-53091",
        "our hotline 800-820-6666 or +49 800 3301000",
    ],
)
def test_prices_dates_and_ids_are_no_phone_numbers(text):
    assert rows_with(find_phone_numbers, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "Pay with 4539 1488 0343 6467.",
        "5425233430109903",
        "3714-496353-98431",
        "Transfer it to DE89 3704 0044 0532 0130 00.",
        "GB29NWBK60161331926819",
        "IBAN BE71 0961 2345 6769 BIC KREDBEBB",
    ],
)
def test_a_card_or_an_account_is_found(text):
    assert rows_with(find_bank_numbers, text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "4539 1488 0343 6468 fails the check of its digits",
        "4111 1111 1111 1111 is printed in every manual",
        "1700000000000000 microseconds, row 1234567812345670",
        "uuid 45391488-0343-6467-8888-123456789012",
        "DE89 3704 0044 0532 0130 01 has a wrong check digit",
        "PART AB12 CDEF 3456 7890",
        "0.4539148803436467 and 4539148803436467.25",
    ],
)
def test_what_fails_its_check_digits_is_no_card_and_no_account(text):
    assert rows_with(find_bank_numbers, text) == []


def test_rows_are_counted_and_values_not_shown():
    items = []
    for number in range(1, 6):
        items.append(LintItem(f"rows.jsonl, row {number}", "a row", "ask ivo.k@posteo.net"))
    (finding,) = find_email_addresses(items)
    assert finding.count == 5
    assert finding.rows == ("rows.jsonl, row 1", "rows.jsonl, row 2", "rows.jsonl, row 3")
    assert "posteo" not in finding.sentence


@pytest.mark.parametrize(
    ("find", "library"), [(find_phone_numbers, "phonenumbers"), (find_bank_numbers, "stdnum")]
)
def test_a_check_without_its_library_says_what_to_install(find, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NotDoneError, match=r"not looked for: pip install 'peftkit\[lint\]'"):
        find([])
