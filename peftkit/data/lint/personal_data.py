"""What looks like somebody's e-mail address, phone number, card or bank account.

Each is found by its form and then checked: phone numbers by phonenumbers (are there such numbers in
that country?), cards and accounts by python-stdnum (check digits). The values are not shown.
"""

import re
from collections.abc import Callable, Sequence

from peftkit.data.lint.items import Finding, LintItem, either, not_done, shown

# The end of an address is that of a country, or a usual general one; x@weights.mean is code.
_EMAIL = re.compile(
    r"(?<![\w.%+/@-])(?P<name>[\w.%+-]{1,64})@(?P<host>(?:[\w-]{1,63}\.){1,4}"
    r"(?:[a-z]{2}|com|org|net|edu|gov|mil|info|biz|name|online|email|cloud|shop|site))"
    r"(?![\w@(-]|\.\w)",
    re.IGNORECASE,
)
_EXAMPLES = re.compile(r"(?:^|\.)(?:example|domain|company|yourdomain)\.\w+$", re.IGNORECASE)
# Names that are there to be replaced, and offices.
_NOBODY = {
    *("name", "yourname", "your.name", "your_name", "user", "username", "you", "me", "someone"),
    *("email", "youremail", "your.email", "your_email", "git", "info", "support", "contact"),
    *("help", "sales", "service", "admin", "office", "hello", "press", "jobs", "noreply"),
    *("no-reply", "donotreply", "do-not-reply", "postmaster", "webmaster", "abuse", "privacy"),
}

_INTERNATIONAL = re.compile(r"(?<![\w+.])\+[1-9](?:[ ().\-/]{0,2}\d){7,14}(?!\w)")
_NORTH_AMERICAN = re.compile(
    r"(?<![\w.+$€£/-])(?:\(\d{3}\) ?|\d{3}(?P<sign>[.-]))(?!555.01)\d{3}(?(sign)(?P=sign)|-)\d{4}"
    r"(?![\w/-]|\.\w)"
)

_CARD = re.compile(
    r"(?<![\w.-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -]?)\d{6}\2\d{5})"
    r"(?![\w-]|\.\d)"
)
_CARD_START = re.compile(r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|35|6011|64[4-9]|65")
_SPECIMEN = 3  # different digits; the numbers that are printed as examples have few
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")


def find_email_addresses(items: Sequence[LintItem]) -> list[Finding]:
    """Find rows with e-mail addresses of persons: not of offices, and not of examples."""
    return _find(items, _has_email, "an e-mail address", "e-mail addresses")


def find_phone_numbers(items: Sequence[LintItem]) -> list[Finding]:
    """Find rows with phone numbers that begin with +, or are written as in North America.

    Numbers that companies are called by without charge, or for a charge, are none of a person.

    Raises:
        NotDoneError: the phonenumbers library is not installed.
    """
    try:
        import phonenumbers
    except ModuleNotFoundError as problem:
        raise not_done("phone numbers") from problem

    kinds = phonenumbers.PhoneNumberType
    personal = {kinds.FIXED_LINE, kinds.MOBILE, kinds.FIXED_LINE_OR_MOBILE, kinds.PERSONAL_NUMBER}

    def is_number(text: str, region: str | None) -> bool:
        try:
            number = phonenumbers.parse(text, region)
            return phonenumbers.number_type(number) in personal  # which is of valid numbers only
        except phonenumbers.NumberParseException:
            return False

    def has_number(text: str) -> bool:
        for match in _INTERNATIONAL.finditer(text):
            if any(is_number(start, None) for start in _starts(match[0])):
                return True
        return any(is_number(match[0], "US") for match in _NORTH_AMERICAN.finditer(text))

    return _find(items, has_number, "a phone number", "phone numbers")


def find_bank_numbers(items: Sequence[LintItem]) -> list[Finding]:
    """Find rows with numbers of payment cards (Luhn) and of bank accounts (IBAN).

    Raises:
        NotDoneError: the python-stdnum library is not installed.
    """
    try:
        from stdnum import iban, luhn
    except ModuleNotFoundError as problem:
        raise not_done("card numbers and IBANs") from problem

    def has_card(text: str) -> bool:
        for match in _CARD.finditer(text):
            digits = re.sub(r"\D", "", match[0])
            is_specimen = len(set(digits)) <= _SPECIMEN
            if _CARD_START.match(digits) and not is_specimen and luhn.is_valid(digits):
                return True
        return False

    def has_iban(text: str) -> bool:
        found: list[str] = []
        for match in _IBAN.finditer(text):
            found += _starts(match[0])
        return any(map(iban.is_valid, found))

    cards = _find(items, has_card, "a card number", "card numbers")
    return [*cards, *_find(items, has_iban, "a bank account (IBAN)", "bank accounts (IBAN)")]


def _starts(text: str) -> list[str]:
    """Return a text and its beginnings: words that look like part of a number may follow it."""
    words = text.split(" ")
    return [" ".join(words[:count]) for count in range(len(words), 0, -1)]


def _has_email(text: str) -> bool:
    if "@" not in text:
        return False
    for match in _EMAIL.finditer(text):
        before = text[max(0, match.start() - 200) : match.start()].rpartition(" ")[2]
        is_password = "://" in before  # https://user:password@host
        is_example = _EXAMPLES.search(match["host"]) or match["name"].lower() in _NOBODY
        if not is_password and not is_example:
            return True
    return False


def _find(
    items: Sequence[LintItem], has_value: Callable[[str], bool], one: str, several: str
) -> list[Finding]:
    """Return the finding of the rows in which a value is found."""
    numbers = []
    for number, item in enumerate(items):
        if has_value(item.content):
            numbers.append(number)
    if not numbers:
        return []
    seems = either(len(numbers), f"row seems to hold {one}", f"rows seem to hold {several}")
    return [
        Finding(
            "personal data",
            len(numbers),
            seems,
            "remove or replace what nobody agreed to, as a model may repeat it",
            shown(items, numbers),
        )
    ]
