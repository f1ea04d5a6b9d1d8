"""Tagged words: rows of words with tags, or of texts with spans, and the tokens that carry tags."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from peftkit.data.class_names import class_name
from peftkit.data.column_names import missing_columns, rename_columns
from peftkit.data.row_files import RowSource, read_rows, source_name
from peftkit.data.row_values import check_text, parse_json, quote
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError, EmptyRowError

LabelOn = Literal["first", "last"]
Offsets = list[tuple[int, int]]  # where words begin and end in a text, in characters
Placed = tuple[dict[str, Any], list[int | None]]
"""A tokenised row, and for each of its words the place of the token that carries its tag."""

_ANSWERS = ("tags", "spans")
_SPAN_KEYS = ("start", "end", "label")
_LEAVE_OUT = "leave the row out, or set data.skip_empty"
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"  # Chinese characters and kana
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def read_tagged_rows(
    source: RowSource,
    columns: dict[str, str],
    encoding: str | None = None,
    *,
    labelled: bool = True,
) -> Rows:
    """Return rows with ``tokens`` and ``tags``, or with ``text`` and ``spans``.

    A span is ``{"start", "end", "label"}``, in characters. In the file it may also be ``[start,
    end, label]``, as doccano and spaCy write it. Tags and labels become texts.

    Args:
        source: Where the rows are, as `peftkit.data.row_files.read_rows` takes it.
        columns: The source's name for each column that it calls otherwise.
        encoding: The encoding of text files, as `read_rows` takes it.
        labelled: Whether rows must have words, and tags or spans.

    Raises:
        DataError: the file has no column of words. Reading a row raises it too, where the words or
            their tags are not what they must be; an `EmptyRowError`, where there are none.
    """
    rows = read_rows(source, encoding=encoding)
    rows = rename_columns(rows, columns, optional=() if labelled else _ANSWERS)
    present = rows.columns
    is_text = "tokens" not in present and not {"text", "spans"}.isdisjoint(present)
    needed = ("text", "spans") if is_text else ("tokens", "tags")
    has_answers = not labelled or "tags" in present or "spans" in present
    if needed[0] not in present or not has_answers:
        raise DataError(
            missing_columns(rows, needed if labelled else needed[:1], source_name(source))
        )
    return rows.map(partial(_read_row, labelled=labelled))


def _read_row(row: Row, *, labelled: bool) -> Row:
    """Return a row with its words, and if it is labelled, their tags or spans, in one form."""
    if row.get("tokens") is not None:
        row = row | {"tokens": _read_tokens(row["tokens"])}
        if not labelled:
            return row
        if not row["tokens"]:
            raise EmptyRowError(f"'tokens' holds no words: {_LEAVE_OUT}")
        return row | {"tags": _read_tags(row.get("tags"), row["tokens"])}
    if "tokens" in row:  # as in files where other rows have it
        row = {column: value for column, value in row.items() if column != "tokens"}
    if row.get("text") is None:
        raise EmptyRowError(
            f"it has neither 'tokens' (with 'tags') nor 'text' (with 'spans'): {_LEAVE_OUT}"
        )
    text = check_text(row["text"], "'text'")
    if not labelled:
        return row
    if not text.strip():
        raise EmptyRowError(f"'text' is blank: {_LEAVE_OUT}")
    return row | {"spans": _read_spans(row.get("spans"), len(text))}


def _read_tokens(value: Any) -> list[str]:
    tokens = parse_json(value, "'tokens'")
    if not isinstance(tokens, list):
        raise DataError(f"'tokens' is {quote(tokens)}; it must be a list of texts")
    for number, token in enumerate(tokens, 1):
        if not check_text(token, f"word {number}"):
            raise DataError(f"word {number} is empty; leave it out, and its tag")
    return tokens


def _read_tags(value: Any, tokens: Sequence[str]) -> list[str]:
    tags = parse_json(value, "'tags'")
    if not isinstance(tags, list):
        raise DataError(f"there are {len(tokens)} tokens and no tags")
    if len(tags) != len(tokens):
        raise DataError(f"there are {len(tokens)} tokens and {len(tags)} tags")
    names = []
    for number, (tag, token) in enumerate(zip(tags, tokens, strict=True), 1):
        names.append(class_name(tag, f"the tag of word {number}, {quote(token)},"))
    return names


def _read_spans(value: Any, length: int) -> list[dict[str, Any]]:
    """Return spans as dicts, in the order in which they stand in the row."""
    spans = parse_json(value, "'spans'")
    if not isinstance(spans, list):
        raise DataError(f"'spans' is {quote(spans)}; it must be a list of {{start, end, label}}")
    found = []
    for span in spans:
        if isinstance(span, list) and len(span) == len(_SPAN_KEYS):
            span = dict(zip(_SPAN_KEYS, span, strict=True))
        if not _is_span(span, length):
            raise DataError(
                f"the span {quote(span)} is not {{start, end, label}} within the {length} "
                "characters of the text"
            )
        name = class_name(span["label"], f"the label of the span from {span['start']}")
        found.append(span | {"label": name})
    end = 0
    for span in sorted(found, key=_span_start):
        if span["start"] < end:
            raise DataError(f"the span {span!r} overlaps another; nested entities cannot be tagged")
        end = span["end"]
    return found


def _is_span(span: Any, length: int) -> bool:
    if not isinstance(span, dict) or "label" not in span:
        return False
    start, end = span.get("start"), span.get("end")
    # Not isinstance(): to Python, True is a whole number.
    if type(start) is not int or type(end) is not int:
        return False
    return 0 <= start < end <= length


def _span_start(span: dict[str, Any]) -> int:
    start: int = span["start"]
    return start


def split_words(row: Row) -> tuple[str, Offsets]:
    """Return a row's text, and where its words begin and end in it.

    Words are the row's own tokens. In a row without tokens they are runs of letters and digits,
    single Chinese or Japanese characters, and single signs.
    """
    if "tokens" not in row:
        return row["text"], [match.span() for match in _WORD.finditer(row["text"])]
    offsets: Offsets = []
    start = 0
    for token in row["tokens"]:
        end = start + len(token)
        offsets.append((start, end))
        start = end + 1  # a space follows
    return " ".join(row["tokens"]), offsets


def read_tags(row: Row) -> list[str]:
    """Return the tag of each word of `split_words`.

    Tags are the row's own. In a row with spans they are B-, I- and O tags, and a word that is
    partly in a span belongs to it.
    """
    if "tokens" in row:
        return list(row["tags"])
    _, offsets = split_words(row)
    spans = sorted(row["spans"], key=_span_start)
    tags = []
    last = None
    for start, end in offsets:
        span = _find_span(spans, start, end)
        if span is None:
            tags.append("O")
        elif span is last:
            tags.append(f"I-{span['label']}")
        else:
            tags.append(f"B-{span['label']}")
        last = span
    return tags


def _find_span(spans: list[dict[str, Any]], start: int, end: int) -> dict[str, Any] | None:
    """Return the first span that shares a character with a word."""
    for span in spans:
        if span["start"] < end and start < span["end"]:
            return span
    return None


def place_words(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, label_on: LabelOn
) -> list[Placed]:
    """Tokenise each row as one text, and find the token that carries each word's tag.

    Args:
        rows: Rows of words or text.
        tokenizer: A fast tokenizer.
        max_length: The longest encoding, in tokens.
        label_on: Whether a word's first or last token carries its tag.

    Returns:
        For each row, the encoding, and for each word the place of its token. A word beyond
        `max_length` has None, and so has one of which the tokenizer leaves nothing. Several words
        may share a token, for example one of several Chinese characters; then all have the same
        place.

    Raises:
        DataError: the tokenizer returns no character offsets.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} returns no character offsets, which tags "
            "need"
        )
    texts, words = zip(*map(split_words, rows), strict=True)
    encodings = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_offsets_mapping=True
    )
    found = []
    for number, offsets in enumerate(words):
        encoding = {name: values[number] for name, values in encodings.items()}
        places = _places(offsets, encoding.pop("offset_mapping"), label_on)
        found.append((encoding, places))
    return found


def _places(offsets: Offsets, tokens: Offsets, label_on: LabelOn) -> list[int | None]:
    """Return the place of each word's token, given where words and tokens begin and end."""
    own: list[int | None] = [None] * len(offsets)  # tokens that begin in a word
    shared: dict[int, int] = {}  # tokens that begin in an earlier word
    word = 0
    for token, (start, end) in enumerate(tokens):
        while word < len(offsets) and offsets[word][1] <= start:
            word += 1
        is_in_word = word < len(offsets) and start < end and offsets[word][0] < end
        if not is_in_word:
            continue
        if label_on == "last" or own[word] is None:
            own[word] = token
        later = word + 1
        while later < len(offsets) and offsets[later][0] < end:
            shared.setdefault(later, token)
            later += 1
    places = []
    for word, place in enumerate(own):
        places.append(shared.get(word) if place is None else place)
    return places


def find_spans(row: Row, predicted: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities that tags mark, as spans of characters with their text.

    Args:
        row: The row whose words have the tags.
        predicted: B-, I- and O tags (and E- and S-), one for each word.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    text, offsets = split_words(row)
    spans = []
    for label, first, last in get_entities(list(predicted)):
        start, _ = offsets[first]
        _, end = offsets[last]
        spans.append({"start": start, "end": end, "label": label, "text": text[start:end]})
    return spans
