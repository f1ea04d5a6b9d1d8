"""Numbers, clock times and dates in English and German."""

import random

Phrase = tuple[str, str]


def _words(text: str) -> list[str]:
    return text.split()


_ONES_EN = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_ONES_DE = _words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
    "fünfzehn sechzehn siebzehn achtzehn neunzehn"
)
_TENS_EN = _words("- - twenty thirty forty fifty sixty seventy eighty ninety")
_TENS_DE = _words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
# The ordinals that are not the number with "th" (English) or "te" (German) behind it.
_ORDINALS_EN = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}
_ORDINALS_DE = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
_MONTHS = {  # the German name, and the number of days
    "January": ("Januar", 31),
    "February": ("Februar", 29),
    "March": ("März", 31),
    "April": ("April", 30),
    "May": ("Mai", 31),
    "June": ("Juni", 30),
    "July": ("Juli", 31),
    "August": ("August", 31),
    "September": ("September", 30),
    "October": ("Oktober", 31),
    "November": ("November", 30),
    "December": ("Dezember", 31),
}
_DAYS = {
    "Monday": "Montag",
    "Tuesday": "Dienstag",
    "Wednesday": "Mittwoch",
    "Thursday": "Donnerstag",
    "Friday": "Freitag",
    "Saturday": "Samstag",
    "Sunday": "Sonntag",
}
_TIMES = {  # {0} is the hour, {1} the next one; German counts half hours towards the next
    "{0} o'clock": "{0} Uhr",
    "five past {0}": "fünf nach {0}",
    "ten past {0}": "zehn nach {0}",
    "a quarter past {0}": "Viertel nach {0}",
    "twenty past {0}": "zwanzig nach {0}",
    "half past {0}": "halb {1}",
    "twenty to {1}": "zwanzig vor {1}",
    "a quarter to {1}": "Viertel vor {1}",
    "ten to {1}": "zehn vor {1}",
    "five to {1}": "fünf vor {1}",
}


def phrases(count: int) -> list[Phrase]:
    """Return `count` different English phrases with their German, the same ones every time."""
    generator = random.Random(0)
    kinds = (_number, _number, _date, _time)
    found: dict[str, str] = {}
    while len(found) < count:
        english, german = generator.choice(kinds)(generator)
        found[english] = german
    return list(found.items())


def english_number(value: int) -> str:
    """Return a number from 0 to 9999 in British words: ``three hundred and twelve``."""
    if value < 20:
        return _ONES_EN[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return f"{_TENS_EN[tens]}-{_ONES_EN[ones]}" if ones else _TENS_EN[tens]
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        words = f"{_ONES_EN[hundreds]} hundred"
        return f"{words} and {english_number(rest)}" if rest else words
    thousands, rest = divmod(value, 1000)
    words = f"{english_number(thousands)} thousand"
    if not rest:
        return words
    if rest < 100:
        return f"{words} and {english_number(rest)}"
    return f"{words} {english_number(rest)}"


def german_number(value: int) -> str:
    """Return a number from 0 to 9999 in words: ``dreihundertzwölf``."""
    if value < 20:
        return _ONES_DE[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return f"{_before_noun(ones)}und{_TENS_DE[tens]}" if ones else _TENS_DE[tens]
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        words = f"{_before_noun(hundreds)}hundert"
    else:
        thousands, rest = divmod(value, 1000)
        words = f"{_before_noun(thousands)}tausend"
    return words + german_number(rest) if rest else words


def _before_noun(value: int) -> str:
    """Return a German number as it is inside a longer word: "eins" loses its s."""
    return "ein" if value == 1 else german_number(value)


def _number(generator: random.Random) -> Phrase:
    value = generator.randrange(10 ** generator.choice((3, 4)))
    return english_number(value), german_number(value)


def _date(generator: random.Random) -> Phrase:
    month = generator.choice(list(_MONTHS))
    german_month, days = _MONTHS[month]
    day = generator.randint(1, days)
    head, dash, last = english_number(day).rpartition("-")
    last_ordinal = _ORDINALS_EN.get(last, f"{last}th")
    english = f"the {head}{dash}{last_ordinal} of {month}"
    ending = "te" if day < 20 else "ste"
    ordinal = _ORDINALS_DE.get(day, german_number(day) + ending)
    if generator.random() < 0.3:
        return english, f"der {ordinal} {german_month}"
    weekday = generator.choice(list(_DAYS))
    return f"on {weekday}, {english}", f"am {_DAYS[weekday]}, dem {ordinal}n {german_month}"


def _time(generator: random.Random) -> Phrase:
    english_pattern = generator.choice(list(_TIMES))
    german_pattern = _TIMES[english_pattern]
    hour = generator.randint(1, 12)
    next_hour = hour % 12 + 1
    english = english_pattern.format(english_number(hour), english_number(next_hour))
    german = german_pattern.format(
        _german_hour(hour, german_pattern), _german_hour(next_hour, german_pattern)
    )
    kind = generator.random()
    if kind < 0.1:
        return f"at {english}", f"um {german}"
    weekday = generator.choice(list(_DAYS))
    if kind < 0.5:
        return f"{english} on {weekday}", f"{german} am {_DAYS[weekday]}"
    return f"on {weekday} at {english}", f"am {_DAYS[weekday]} um {german}"


def _german_hour(hour: int, pattern: str) -> str:
    """Return an hour in German: "ein Uhr", but "halb eins"."""
    return "ein" if hour == 1 and pattern.endswith("Uhr") else german_number(hour)
