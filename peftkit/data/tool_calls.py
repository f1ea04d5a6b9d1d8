"""Tools, and calls of them, however they are written, as chat templates take them."""

from typing import Any

from peftkit.data.row_values import check_json, check_text, parse_json, quote
from peftkit.errors import DataError, nearest

ToolCall = dict[str, Any]
Tool = dict[str, Any]

_CALL_KEYS = ("id", "type", "function", "index")
_FUNCTION_KEYS = ("name", "arguments")


def read_tool_calls(value: object, place: str) -> list[ToolCall]:
    """Return calls as ``{"type": "function", "function": {"name", "arguments"}}``.

    Args:
        value: A call, or a list of calls, or either as a JSON text. A call may also be
            ``{"name", "arguments"}`` alone. Its arguments are an object or a JSON text of one; a
            call without arguments has none.
        place: What messages call it, such as "'tool_calls'".

    Returns:
        The calls, each with its ``id`` if it has one. The arguments are objects.

    Raises:
        DataError: a call has no name, its arguments are not an object, or it has unknown keys.
    """
    calls = parse_json(value, place)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise DataError(f"{place} is {quote(value)}; it must be a list of calls")
    return [_read_call(call) for call in calls]


def _read_call(call: object) -> ToolCall:
    if not isinstance(call, dict):
        raise DataError(f"{quote(call)} is not a tool call with a name and arguments")
    _check_type(call, "tool call")
    function = call.get("function")
    if function is None:
        function = call
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise DataError(f"the tool call {quote(call)} has no name of a function")
    name = check_text(function["name"], "the name in a tool call")
    if function is call:
        _check_keys(name, call, (*_CALL_KEYS, *_FUNCTION_KEYS))
    else:
        _check_keys(name, call, _CALL_KEYS)
        _check_keys(name, function, _FUNCTION_KEYS)
    read: ToolCall = {"type": "function"}
    if call.get("id") is not None:
        read["id"] = check_text(call["id"], f"the id of the call of {name!r}")
    read["function"] = {"name": name, "arguments": _read_arguments(name, function)}
    return read


def _check_type(entry: dict[Any, Any], what: str) -> None:
    kind = entry.get("type")
    if kind is not None and kind != "function":
        raise DataError(f"a {what} is of type {quote(kind)}; only functions can be called")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_keys(name: str, entry: dict[Any, Any], known: tuple[str, ...]) -> None:
    """Check that a call has no other keys: those who write "parameters" mean the arguments."""
    for key, value in entry.items():
        if key not in known and value:
            hint = (
                "; did you mean 'arguments'?" if key == "parameters" else nearest(str(key), known)
            )
            raise DataError(f"the call of {name!r} has the unknown key {quote(key)}{hint}")


def _read_arguments(name: str, function: dict[Any, Any]) -> dict[str, Any]:
    place = f"the arguments of the call of {name!r}"
    written = function.get("arguments")
    arguments = parse_json(written, place)
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise DataError(
            f"{place} are {quote(written)}; they must be an object, or a JSON text of one"
        )
    check_json(arguments, f"a call of {name!r}")
    return arguments


def read_tools(value: object, place: str) -> list[Tool]:
    """Return tools as ``{"type": "function", "function": schema}``.

    Args:
        value: A list of tools, or a JSON text of one; each is in this form, or the schema alone. No
            value, or an empty one, is no tool.
        place: What messages call it, such as "'tools'".

    Raises:
        DataError: this is not a list of tools, or one has no name.
    """
    tools = parse_json(value, place)
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise DataError(f"{place} is {quote(value)}; it must be a list of tools")
    found = []
    for entry in tools:
        found.append(_read_tool(parse_json(entry, place)))
    check_json(found, place)
    return found


def _read_tool(tool: object) -> Tool:
    if not isinstance(tool, dict):
        raise DataError(f"{quote(tool)} is not a tool: it must be an object with a name")
    _check_type(tool, "tool")
    read = tool
    if tool.get("function") is None:
        schema = dict(tool)
        schema.pop("type", None)
        schema.pop("function", None)
        read = {"type": "function", "function": schema}
    function = read["function"]
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise DataError(f"the tool {quote(tool)} has no name of a function")
    return read
