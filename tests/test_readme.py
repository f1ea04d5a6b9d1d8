"""What the README shows works: its Python runs, its commands and its config are accepted."""

import re
import shlex
from pathlib import Path

import pytest

import peftkit
from peftkit import cli
from peftkit.config.reading import read
from peftkit.runs.recipes import load_recipe, recipe_named, recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def commands():
    """Return the lines of the README's blocks that call peftkit, without comments, as words."""
    lines = "".join(blocks("text") + blocks("bash")).splitlines()
    shown = [line.removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True) for line in shown if line.startswith("peftkit ")]


COMMANDS = commands()
LAUNCHES = [words for words in COMMANDS if words[1] == "train"]


@pytest.mark.filterwarnings("ignore")
def test_the_python_blocks_run_one_after_another_on_a_tiny_model(llama_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = "Qwen/Qwen3-1.7B"
    assert model in blocks("python")[0]
    names = {}
    for code in blocks("python"):
        names["base"] = peftkit.load_backbone(llama_dir)  # a bare backbone, wherever one is named
        exec(code.replace(model, str(llama_dir)), names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "prefix" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_is_accepted_by_the_parser(words, monkeypatch):
    seen = []
    for verb in cli._VERBS:
        monkeypatch.setattr(verb, "_run", lambda options: seen.append(options.command) or 0)
    assert cli.main(words[1:]) == 0
    assert seen == [words[1]]


@pytest.mark.parametrize("words", LAUNCHES, ids=" ".join)
def test_a_recipe_accepts_the_keys_that_the_readme_gives_it(words, tmp_path, monkeypatch):
    place = next(place for place, word in enumerate(words) if word in recipes())
    options = words[place + 1 :]
    if "..." in options:
        options = []
    monkeypatch.chdir(ROOT)
    config = tmp_path / "my.yaml"
    config.write_text(blocks("yaml")[0])
    options = [str(config) if word == "my.yaml" else word for word in options]
    read(load_recipe(recipe_named(words[place])).Config, options or ["--config", str(config)])


def test_every_file_that_the_readme_names_is_there():
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    named += re.findall(r"--config(?:_file)? (recipes/\S+)", README)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
