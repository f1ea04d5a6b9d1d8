"""Tagged words: from words with tags, or a text with spans of characters, to tokens; and back."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from peftkit.data.row_files import Row, read_rows, rename_columns
from peftkit.errors import DataError

LabelOn = Literal["first", "last"]
Offsets = list[tuple[int, int]]
_ANSWERS = ("tags", "spans")
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def read_tagged_rows(path: str, columns: dict[str, str], *, labelled: bool = True) -> list[Row]:
    """Return rows with ``tokens`` (and ``tags``), or ``text`` (and ``spans``, a list of ``{"start",
    "end", "label"}``).

    In the file a span may be ``[start, end, label]`` too, as doccano and spaCy write it.

    Raises:
        DataError: names the first row, counted from 1, that is neither.
    """
    rows = rename_columns(read_rows(path), columns, optional=() if labelled else _ANSWERS)
    if labelled:
        rows = [row | {"spans": _as_dicts(row["spans"])} if "spans" in row else row for row in rows]
    for number, row in enumerate(rows, 1):
        problem = _problem(row, labelled)
        if problem:
            raise DataError(f"{path}, row {number}: {problem}")
    return rows


def _as_dicts(spans: Any) -> Any:
    if not isinstance(spans, list):
        return spans
    return [
        dict(zip(("start", "end", "label"), span, strict=True))
        if isinstance(span, list) and len(span) == 3
        else span
        for span in spans
    ]


def _problem(row: Row, labelled: bool) -> str:
    if "tokens" in row:
        tokens, tags = row["tokens"], row.get("tags")
        if not isinstance(tokens, list) or not all(
            isinstance(token, str) and token for token in tokens
        ):
            return f"'tokens' is {tokens!r}; it must be a list of texts that are not empty"
        if labelled and (not isinstance(tags, list) or len(tags) != len(tokens)):
            return f"there are {len(tokens)} tokens and {len(tags) if isinstance(tags, list) else 'no'} tags"
        return ""
    if not isinstance(row.get("text"), str):
        return "it has neither 'tokens' (with 'tags') nor 'text' (with 'spans')"
    if not labelled:
        return ""
    return _span_problem(row.get("spans"), len(row["text"]))


def _span_problem(spans: Any, length: int) -> str:
    if not isinstance(spans, list):
        return f"'spans' is {spans!r}; it must be a list of {{start, end, label}}"
    for span in spans:
        if not _is_span(span, length):
            return f"the span {span!r} is not {{start, end, label}} within the {length} characters of the text"
    end = 0
    for span in sorted(spans, key=lambda span: span["start"]):
        if span["start"] < end:
            return f"the span {span!r} overlaps another; nested entities cannot be tagged"
        end = span["end"]
    return ""


def _is_span(span: Any, length: int) -> bool:
    if (
        not isinstance(span, dict)
        or type(span.get("start")) is not int
        or type(span.get("end")) is not int
    ):
        return False
    return 0 <= span["start"] < span["end"] <= length and "label" in span


def split_words(row: Row) -> tuple[str, Offsets]:
    """Return a row's text and where its words are in it: its tokens, or runs of letters, single
    signs, Chinese characters.
    """
    if "tokens" not in row:
        return row["text"], [match.span() for match in _WORD.finditer(row["text"])]
    offsets, start = [], 0
    for token in row["tokens"]:
        offsets.append((start, start + len(token)))
        start += len(token) + 1
    return " ".join(row["tokens"]), offsets


def read_tags(row: Row) -> list[str]:
    """Return the tag of each of `words`: the row's own, or B-, I- and O by its spans; a word partly
    in a span is in it.
    """
    if "tokens" in row:
        return [str(tag) for tag in row["tags"]]
    spans = sorted(row["spans"], key=lambda span: span["start"])
    found, last = [], None
    for start, end in split_words(row)[1]:
        span = next((each for each in spans if each["start"] < end and start < each["end"]), None)
        found.append("O" if span is None else f"{'I' if span is last else 'B'}-{span['label']}")
        last = span
    return found


def place_words(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int, label_on: LabelOn
) -> tuple[dict[str, Any], list[int | None]]:
    """Tokenise a row as one text; return the encoding, and for each word the token that carries its
    tag.

    Words behind `max_length` tokens, and words of which the tokenizer leaves nothing, have none. A
    word that shares its only token with the word before (a token of several Chinese characters) has
    the same one.

    Raises:
        DataError: the tokenizer tells no character offsets.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} tells no character offsets, which tags need"
        )
    text, offsets = split_words(row)
    encoding = dict(
        tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    )
    places: list[int | None] = [None] * len(offsets)
    shared: dict[int, int] = {}
    number = 0
    for token, (start, end) in enumerate(encoding.pop("offset_mapping")):
        while number < len(offsets) and offsets[number][1] <= start:
            number += 1
        inside = number < len(offsets) and start < end and offsets[number][0] < end
        if inside and (label_on == "last" or places[number] is None):
            places[number] = token
        later = number + 1
        while inside and later < len(offsets) and offsets[later][0] < end:
            shared.setdefault(later, token)
            later += 1
    return encoding, [
        shared.get(number) if place is None else place for number, place in enumerate(places)
    ]


def find_spans(row: Row, predicted: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities of B-, I- and O tags (and E- and S-) as spans of characters with their
    text.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    text, offsets = split_words(row)
    return [
        {
            "start": offsets[first][0],
            "end": offsets[last][1],
            "label": label,
            "text": text[offsets[first][0] : offsets[last][1]],
        }
        for label, first, last in get_entities(list(predicted))
    ]
