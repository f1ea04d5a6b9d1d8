"""What docs/data-formats.md shows is true: each example is read, and becomes what the page says."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from peftkit.config.sections import DataSettings
from peftkit.data.audio import read_audio_rows
from peftkit.data.dialogue_formats import read_text_rows
from peftkit.data.images import read_image_rows
from peftkit.data.message_formats import ROLES, unread_keys
from peftkit.data.table_rows import read_table_rows
from peftkit.data.table_values import read_label, read_text
from peftkit.data.tagging import read_tagged_rows
from peftkit.runs.recipes import recipes

PAGE = (Path(__file__).parent.parent / "docs" / "data-formats.md").read_text("utf-8")


def sections(part):
    """The sections of a part of the page, by heading."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = (each for each in text if each.startswith(f"{part}\n"))
    _, *parts = re.split(r"^### ", found, flags=re.MULTILINE)
    return {text.partition("\n")[0]: text for text in parts}


def examples(text):
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


DIALOGUES = sections("Dialogues and texts")
TABLES = sections("Tables")


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_dialogue_or_text_becomes_what_the_page_says(name, tmp_path):
    in_file, *becomes = examples(DIALOGUES[name])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(in_file))
    (row,) = read_text_rows(DataSettings(train=""), str(path))
    expected = becomes[0] if becomes else in_file
    assert {key: row[key] for key in row if key != "format"} == expected
    for format_named in re.findall(r"`data.format: ([a-z-]+)`", DIALOGUES[name]):
        assert list(read_text_rows(DataSettings(train="", format=format_named), str(path))) == [row]


def read_table(name, path):
    columns = {
        "Classes": {"text": read_text, "label": read_label},
        "Pairs of texts": {"text": read_text, "other": read_text, "label": read_label},
        "One text from another": {"source": read_text, "target": read_text},
        "Images": {"image": read_text, "label": read_label},
        "Speech": {"audio": read_text, "text": read_text},
    }
    if name == "Images":
        return read_image_rows(path, columns[name], {})
    if name == "Speech":
        return read_audio_rows(path, columns[name], {})
    if name in ("Tags", "Spans"):
        return read_tagged_rows(path, {})
    return read_table_rows(path, columns[name], {})


@pytest.mark.parametrize("name", TABLES)
def test_a_row_of_a_table_becomes_what_the_page_says(name, tmp_path):
    in_file, *becomes = examples(TABLES[name])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(in_file))
    expected = dict(becomes[0] if becomes else in_file)
    for column in ("image", "audio"):
        if column in expected:
            file = tmp_path / expected[column]
            file.touch()
            expected[column] = str(file)
    assert list(read_table(name, str(path))) == [expected]


def test_every_recipe_is_on_the_page():
    assert [name for name in recipes() if f"`{name}`" not in PAGE] == []


def test_every_format_that_a_config_may_name_is_on_the_page():
    described = set(re.findall(r"`data\.format: ([a-z-]+)`", PAGE))
    assert described | {"auto"} == set(get_args(DataSettings.__annotations__["format"]))


def test_the_page_names_every_role_and_every_harmless_key():
    chat = DIALOGUES["Chat"]
    assert [role for role in ROLES if role not in chat] == []
    (keys,) = re.findall(r"^\| (.*) of a message \| nothing \|$", chat, flags=re.MULTILINE)
    assert unread_keys(dict.fromkeys(re.findall(r"`(\w+)`", keys), "x")) == []


@pytest.mark.parametrize("text", [*DIALOGUES.values(), *TABLES.values()])
def test_every_section_has_one_table(text):
    assert text.count("| --- | --- |") == 1
