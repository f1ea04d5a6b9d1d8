"""Tools and calls of them, however they are written, become those that chat templates take."""

import json

import pytest

from peftkit.data.tool_calls import read_tool_calls, read_tools
from peftkit.errors import DataError

SCHEMA = {
    "name": "tide",
    "description": "Height of the tide",
    "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
}
TOOL = {"type": "function", "function": SCHEMA}


def call(arguments, **more):
    return {"type": "function", **more, "function": {"name": "tide", "arguments": arguments}}


BREST = {"port": "Brest"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([call(BREST)], call(BREST)),
        ([call(json.dumps(BREST))], call(BREST)),
        ([call(BREST, id="c1", index=0)], call(BREST, id="c1")),
        ([{"name": "tide", "arguments": BREST}], call(BREST)),
        ([{"name": "tide", "arguments": BREST, "id": "c1"}], call(BREST, id="c1")),
        ({"name": "tide", "arguments": BREST}, call(BREST)),
        (json.dumps([call(BREST)]), call(BREST)),
        ([{"name": "tide"}], call({})),
        ([call(None)], call({})),
        ([call("")], call({})),
        ([call({"port": None})], call({"port": None})),
        ([call('{"depth": 1.50}')], call({"depth": 1.5})),
    ],
)
def test_a_call_has_a_name_and_an_object_of_arguments(written, expected):
    assert read_tool_calls(written, "'tool_calls'") == [expected]


def test_the_order_of_arguments_stays():
    (read,) = read_tool_calls([call('{"b": 1, "a": 2}')], "'tool_calls'")
    assert list(read["function"]["arguments"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (7, "^'tool_calls' is 7; it must be a list of calls$"),
        ("tide()", "^'tide\\(\\)' is not JSON, as 'tool_calls' must be: "),
        (["tide"], "^'tide' is not a tool call with a name and arguments$"),
        ([{}], "^the tool call {} has no name of a function$"),
        ([{"name": " ", "arguments": {}}], "has no name of a function$"),
        ([{"function": "tide"}], "has no name of a function$"),
        ([{"type": "custom", "name": "tide"}], "^a tool call is of type 'custom'; only functions"),
        (
            [call("port=Brest")],
            "^'port=Brest' is not JSON, as the arguments of the call of 'tide' must be: ",
        ),
        ([call([1])], "^the arguments of the call of 'tide' are \\[1\\]; they must be an object"),
        ([call('"Brest"')], "^the arguments of the call of 'tide' are '\"Brest\"'; they must be"),
        ([call('{"a": NaN}')], "must be: NaN is not a JSON value$"),
        ([call({"a": float("nan")})], "^a call of 'tide' cannot be written as"),
        ([call({"a": b"x"})], "^a call of 'tide' cannot be written as JSON"),
        (
            [call('{"\\ud83d": 1}')],
            r"^a call of 'tide' holds half of a surrogate pair \(\\ud83d\)",
        ),
        (
            [{"name": "tide", "parameters": BREST}],
            "^the call of 'tide' has the unknown key 'parameters'; did you mean 'arguments'?",
        ),
        ([call(BREST, args=BREST)], "^the call of 'tide' has the unknown key 'args'"),
    ],
)
def test_a_call_that_does_not_fit_gets_one_sentence(written, sentence):
    with pytest.raises(DataError, match=sentence):
        read_tool_calls(written, "'tool_calls'")


@pytest.mark.parametrize(
    "written",
    [
        [TOOL],
        [SCHEMA],
        [SCHEMA | {"type": "function"}],
        json.dumps([TOOL]),
        json.dumps([SCHEMA]),
        [json.dumps(SCHEMA)],
    ],
)
def test_a_tool_is_a_function_with_its_schema(written):
    assert read_tools(written, "'tools'") == [TOOL]


@pytest.mark.parametrize("written", [None, "", [], "[]"])
def test_no_tools_are_an_empty_list(written):
    assert read_tools(written, "'tools'") == []


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (7, "^'tools' is 7; it must be a list of tools$"),
        (TOOL, "^'tools' is {'type': .*; it must be a list of tools$"),
        ("tide", "^'tide' is not JSON, as 'tools' must be: "),
        ([7], "^7 is not a tool: it must be an object with a name$"),
        ([{"type": "web_search"}], "^a tool is of type 'web_search'; only functions can be called"),
        ([{"type": "function", "function": {}}], "has no name of a function$"),
        ([SCHEMA | {"description": "\ud83d"}], r"^'tools' holds half of a surrogate pair"),
    ],
)
def test_a_tool_that_does_not_fit_gets_one_sentence(written, sentence):
    with pytest.raises(DataError, match=sentence):
        read_tools(written, "'tools'")
