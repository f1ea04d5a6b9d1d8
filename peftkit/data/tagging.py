"""Tagged words: rows of words with tags, or of texts with spans, and the tokens that carry tags."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from peftkit.data.column_names import rename_columns
from peftkit.data.row_files import read_rows
from peftkit.data.rows import Row, Rows
from peftkit.errors import DataError

LabelOn = Literal["first", "last"]
Offsets = list[tuple[int, int]]  # where words begin and end in a text, in characters

_ANSWERS = ("tags", "spans")
_SPAN_KEYS = ("start", "end", "label")
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"  # Chinese characters and kana
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def read_tagged_rows(path: str, columns: dict[str, str], *, labelled: bool = True) -> Rows:
    """Return rows with ``tokens`` and ``tags``, or with ``text`` and ``spans``.

    A span is ``{"start", "end", "label"}``, in characters. In the file it may also be ``[start,
    end, label]``, as doccano and spaCy write it.

    Args:
        path: The file, as `peftkit.data.row_files.read_rows` takes it.
        columns: The file's name for each column that it calls otherwise.
        labelled: Whether rows must have tags or spans.

    Raises:
        DataError: a row is neither. It is raised when the row is read.
    """
    rows = rename_columns(read_rows(path), columns, optional=() if labelled else _ANSWERS)

    def check(row: Row) -> Row:
        if labelled and "spans" in row:
            row = row | {"spans": _as_dicts(row["spans"])}
        _check_row(row, labelled)
        return row

    return rows.map(check)


def _as_dicts(spans: Any) -> Any:
    """Turn spans that are lists of three into dicts; leave all else for the check."""
    if not isinstance(spans, list):
        return spans
    dicts = []
    for span in spans:
        if isinstance(span, list) and len(span) == len(_SPAN_KEYS):
            span = dict(zip(_SPAN_KEYS, span, strict=True))
        dicts.append(span)
    return dicts


def _check_row(row: Row, labelled: bool) -> None:
    if "tokens" in row:
        _check_tokens(row["tokens"])
        if labelled:
            _check_tags(row.get("tags"), len(row["tokens"]))
        return
    if not isinstance(row.get("text"), str):
        raise DataError("it has neither 'tokens' (with 'tags') nor 'text' (with 'spans')")
    if labelled:
        _check_spans(row.get("spans"), len(row["text"]))


def _check_tokens(tokens: Any) -> None:
    if not isinstance(tokens, list) or not all(isinstance(each, str) and each for each in tokens):
        raise DataError(f"'tokens' is {tokens!r}; it must be a list of texts that are not empty")


def _check_tags(tags: Any, expected: int) -> None:
    if not isinstance(tags, list):
        raise DataError(f"there are {expected} tokens and no tags")
    if len(tags) != expected:
        raise DataError(f"there are {expected} tokens and {len(tags)} tags")


def _check_spans(spans: Any, length: int) -> None:
    if not isinstance(spans, list):
        raise DataError(f"'spans' is {spans!r}; it must be a list of {{start, end, label}}")
    for span in spans:
        if not _is_span(span, length):
            raise DataError(
                f"the span {span!r} is not {{start, end, label}} within the {length} characters "
                "of the text"
            )
    end = 0
    for span in sorted(spans, key=_span_start):
        if span["start"] < end:
            raise DataError(f"the span {span!r} overlaps another; nested entities cannot be tagged")
        end = span["end"]


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
        return [str(tag) for tag in row["tags"]]
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
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int, label_on: LabelOn
) -> tuple[dict[str, Any], list[int | None]]:
    """Tokenise a row as one text, and find the token that carries each word's tag.

    Args:
        row: A row of words or text.
        tokenizer: A fast tokenizer.
        max_length: The longest encoding, in tokens.
        label_on: Whether a word's first or last token carries its tag.

    Returns:
        The encoding, and for each word the place of its token. A word beyond `max_length` has None,
        and so has one of which the tokenizer leaves nothing. Several words may share a token, for
        example one of several Chinese characters; then all have the same place.

    Raises:
        DataError: the tokenizer returns no character offsets.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} returns no character offsets, which tags "
            "need"
        )
    text, offsets = split_words(row)
    encoding = dict(
        tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    )
    own: list[int | None] = [None] * len(offsets)  # tokens that begin in a word
    shared: dict[int, int] = {}  # tokens that begin in an earlier word
    word = 0
    for token, (start, end) in enumerate(encoding.pop("offset_mapping")):
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
    return encoding, places


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
