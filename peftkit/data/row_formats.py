"""One row of any format of language models, in one of peftkit's own."""

from typing import Any, Literal

from peftkit.data.message_formats import Message, check_answers, read_messages
from peftkit.data.row_values import check_json, check_text, parse_json, quote
from peftkit.data.row_weights import row_weight
from peftkit.data.rows import Row
from peftkit.data.tool_calls import read_tools
from peftkit.errors import DataError, EmptyRowError

Format = Literal["chat", "prompt-completion", "text"]
FileFormat = Literal["chat", "prompt-completion", "alpaca", "sharegpt", "text"]
LossOn = Literal["assistant", "all"]

# Alpaca files often have a "text" column too, so "text" comes last.
FORMAT_COLUMNS: dict[FileFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
_ALPACA_COLUMNS = ("instruction", "input", "output", "history")
_DIALOGUE_COLUMNS = ("system", "tools", "functions", "chat_template_kwargs")
_LEAVE_OUT = "leave the row out, or set data.skip_empty"


def convert_row(
    row: Row, kind: FileFormat, *, labelled: bool = True, loss_on: LossOn = "assistant"
) -> Row:
    """Return a row of a file in one of peftkit's own formats, which is its ``format``.

    Columns that are not part of the format stay as they are. A chat row has ``messages``, as
    `read_messages` returns them, and where the file has them, ``tools`` and
    ``chat_template_kwargs``. The model's own chat template will render it, not Alpaca's "###
    Instruction:". These rows become chat rows:

    - Alpaca: ``system``, ``history`` ([question, answer] pairs), then ``instruction``, an empty
      line and ``input``, and ``output``. Only the instruction or the input must be there.
    - ShareGPT: ``system``, then ``conversations``.
    - Prompts and completions that are lists of messages; the prompt's answers are not learned.

    Args:
        row: A row. What it lacks is the same as None.
        kind: The file's format.
        labelled: Whether the row must have an answer. If not, a row of Alpaca without one ends with
            its question, one with a prompt has an empty completion, and every column stays.
        loss_on: With "all", a dialogue need not have answers, and a prompt's are learned too.

    Raises:
        EmptyRowError: there is nothing to learn from the row.
        DataError: the row does not fit. The message does not say which row it is.
    """
    _check_kind(row, kind)
    row_weight(row)  # is checked
    converted = dict(row)
    if row.get("expect") is not None:
        converted["expect"] = _read_expect(row["expect"])
    if kind == "text":
        return converted | {"format": "text", "text": _read_learned(row, "text")}
    if kind == "prompt-completion" and not is_conversational(row):
        return converted | {"format": "prompt-completion"} | _read_pair(row, labelled=labelled)
    messages = _read_dialogue(row, kind, labelled=labelled, loss_on=loss_on)
    if labelled:
        check_answers(messages, must_have_one=loss_on == "assistant")
    became_messages = columns_read(row, kind) if labelled else ("tools", "chat_template_kwargs")
    for column in became_messages:
        converted.pop(column, None)
    return converted | {"format": "chat", "messages": messages} | _read_template_inputs(row)


def columns_read(row: Row, kind: FileFormat) -> tuple[str, ...]:
    """Return the columns that a row of a format may have, but for those that all formats have."""
    if kind == "text" or (kind == "prompt-completion" and not is_conversational(row)):
        return FORMAT_COLUMNS[kind]
    own = _ALPACA_COLUMNS if kind == "alpaca" else FORMAT_COLUMNS[kind]
    return (*own, *_DIALOGUE_COLUMNS)


def _check_kind(row: Row, kind: FileFormat) -> None:
    """Check that a row without the columns of its format is empty, and not of another format."""
    if not _lacks(row, FORMAT_COLUMNS[kind]):
        return
    for other, columns in FORMAT_COLUMNS.items():
        if all(row.get(column) for column in columns):
            missing = " or ".join(map(repr, FORMAT_COLUMNS[kind]))
            raise DataError(
                f"the row has no {missing}, and its columns are those of {other}: set data.format, "
                "or put the rows of each format into a file of their own"
            )


def _lacks(row: Row, columns: tuple[str, ...]) -> bool:
    return all(row.get(column) is None for column in columns)


def _read_expect(value: object) -> list[str]:
    """Return the texts that an answer must contain; in CSV files they are a JSON text."""
    is_json = isinstance(value, str) and value.lstrip().startswith("[")
    expect = parse_json(value, "'expect'") if is_json else value
    if not isinstance(expect, list) or not all(isinstance(entry, str) for entry in expect):
        raise DataError(f"'expect' is {quote(value)}; it must be a list of texts")
    return expect


def _read_learned(row: Row, column: str) -> str:
    """Return a text that is learned.

    Raises:
        EmptyRowError: there is none.
    """
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise EmptyRowError(
            f"{column!r} is empty, so there is nothing to learn from it: {_LEAVE_OUT}"
        )
    return check_text(value, repr(column))


def is_conversational(row: Row) -> bool:
    """Return whether a prompt and a completion are messages, as TRL has them, and not texts."""
    return isinstance(row.get("prompt"), list) or isinstance(row.get("completion"), list)


def _read_pair(row: Row, *, labelled: bool) -> dict[str, str]:
    prompt = row.get("prompt")
    if labelled:
        completion = _read_learned(row, "completion")
        prompt = "" if prompt is None else prompt  # an empty cell of a CSV file
    else:
        completion = check_text(row.get("completion") or "", "'completion'")
        if prompt is None:
            raise EmptyRowError(f"'prompt' is missing: {_LEAVE_OUT}")
    return {"prompt": check_text(prompt, "'prompt'"), "completion": completion}


def _read_dialogue(row: Row, kind: FileFormat, *, labelled: bool, loss_on: LossOn) -> list[Message]:
    """Return the messages of a row, the system message in its own column among them."""
    if kind == "alpaca":
        messages = _read_alpaca(row, labelled=labelled)
    elif kind == "prompt-completion":
        messages = _read_conversational_pair(row, labelled=labelled, loss_on=loss_on)
    else:
        messages = read_messages(row.get(FORMAT_COLUMNS[kind][0]), FORMAT_COLUMNS[kind][0])
    system = row.get("system")
    if system is not None and system != "" and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": check_text(system, "'system'")})
    return messages


def _read_alpaca(row: Row, *, labelled: bool) -> list[Message]:
    texts = {}
    for column in ("instruction", "input", "output"):
        value = row.get(column)
        texts[column] = "" if value is None else check_text(value, repr(column))
    answer = texts.pop("output")
    has_answer = bool(answer.strip())
    if labelled and not has_answer:
        raise EmptyRowError(
            f"an answer is empty, so there is nothing to learn from it: {_LEAVE_OUT}"
        )
    question = "\n\n".join(filter(None, texts.values()))
    if not question.strip():
        raise DataError("there is neither an instruction nor an input")
    turns = _read_history(row.get("history"))
    turns.append((question, answer))
    messages: list[Message] = []
    for asked, answered in turns:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    if not has_answer:
        messages.pop()
    return messages


def _read_history(value: object) -> list[tuple[str, str]]:
    """Return the earlier questions and answers of a row of Alpaca."""
    history = parse_json(value, "'history'") or []
    turns = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(
                f"'history' is {quote(value)}; it must be a list of [question, answer] pairs"
            )
        asked, answered = pair
        turns.append((check_text(asked, "a question"), check_text(answered, "an answer")))
    return turns


def _read_conversational_pair(row: Row, *, labelled: bool, loss_on: LossOn) -> list[Message]:
    """Return TRL's prompt and completion as one dialogue; only the completion is learned."""
    prompt, completion = row.get("prompt"), row.get("completion")
    for column, value in (("prompt", prompt), ("completion", completion)):
        if value is not None and not isinstance(value, list):
            raise DataError(
                f"{column!r} is {quote(value)}; 'prompt' and 'completion' must both be texts, or "
                "both be lists of messages"
            )
    messages = read_messages(prompt, "prompt") if prompt else []
    for message in messages:
        if message["role"] == "assistant" and loss_on == "assistant":
            message["train"] = False
    if completion or labelled:
        messages += read_messages(completion, "completion")
    if not messages:
        raise EmptyRowError(f"'prompt' holds no messages: {_LEAVE_OUT}")
    return messages


def _read_template_inputs(row: Row) -> dict[str, Any]:
    """Return the tools of a row, and what else it gives to the chat template."""
    inputs: dict[str, Any] = {}
    tools = read_tools(row.get("tools"), "'tools'")
    functions = read_tools(row.get("functions"), "'functions'")  # OpenAI's older name
    if tools and functions and tools != functions:
        raise DataError(
            "the row has both 'tools' and 'functions', which mean the same: leave one out"
        )
    if tools or functions:
        inputs["tools"] = tools or functions
    options = parse_json(row.get("chat_template_kwargs"), "'chat_template_kwargs'")
    if options is not None and not isinstance(options, dict):
        raise DataError(
            f"'chat_template_kwargs' is {quote(options)}; it must be an object, such as "
            '{"enable_thinking": false}'
        )
    if options:
        check_json(options, "'chat_template_kwargs'")
        inputs["chat_template_kwargs"] = options
    return inputs
