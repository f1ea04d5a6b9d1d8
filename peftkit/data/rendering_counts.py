"""What happened to rows when they were rendered, in words.

The counts are: ``rows`` and the ``examples`` made of them; rows ``truncated``, and of these, rows
with ``answers_cut`` before their end; rows ``dropped``; dialogues ``split`` into ``split_examples``
with ``split_tokens``, whose longest ones have ``unsplit_tokens``; ``empty_answers``;
dialogues with ``other_prompts``; variables of ``chat_template_kwargs`` that are in
``options_not_read``; and for each column and key NAME that nobody reads, rows in ``unused NAME``.
"""

from collections import Counter

UNUSED = "unused "  # stands before the names of columns and keys that nobody reads


def describe_counts(counts: Counter[str]) -> str:
    """Return what became of the rows, in one line."""
    made = f"{counts['rows']:,} rows -> {counts['examples']:,} examples"
    return ", ".join([made, *problems(counts)])


def problems(counts: Counter[str]) -> list[str]:
    """Return what was cut, left out or not read, each in words."""
    parts = []
    if counts["split"]:
        parts.append(
            f"{_number(counts['split'], 'dialogue')} split into {counts['split_examples']:,} "
            f"examples of {counts['split_tokens']:,} tokens (the longest of each have "
            f"{counts['unsplit_tokens']:,}), since the template rewrites earlier turns"
        )
    if counts["truncated"]:
        parts.append(
            f"{counts['truncated']:,} truncated, {counts['answers_cut']:,} of them within an answer"
        )
    if counts["empty_answers"]:
        parts.append(f"{_number(counts['empty_answers'], 'empty answer')} not learned")
    if counts["other_prompts"]:
        parts.append(
            f"{_number(counts['other_prompts'], 'dialogue')} whose answers do not follow the "
            "template's own prompt (it may open a thinking block; set enable_thinking to false in "
            "the rows' chat_template_kwargs, or choose another template with data.chat_template)"
        )
    if counts["options_not_read"]:
        parts.append(
            f"{_number(counts['options_not_read'], 'variable')} of chat_template_kwargs that the "
            "template does not read"
        )
    unused = _unused(counts)
    if unused:
        parts.append(f"not learned from: {unused}")
    if counts["dropped"]:
        parts.append(f"{counts['dropped']:,} dropped, with no supervised token left")
    return parts


def _unused(counts: Counter[str]) -> str:
    """Return what nobody reads: "'topic' (3 rows)"."""
    named = []
    for name, count in sorted(counts.items()):
        if name.startswith(UNUSED):
            named.append(f"{name.removeprefix(UNUSED)} ({_number(count, 'row')})")
    return ", ".join(named)


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"
