"""What `--help` shows of a recipe is what it accepts, and the other way round."""

import itertools
import re
import subprocess
import sys
import time

import pytest

from peftkit.config.help import help_text, value_format
from peftkit.config.keys import keys
from peftkit.config.reading import read
from peftkit.errors import ConfigError
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import NAMES, ROOT

NEEDED = ["--model", "m", "--data", "d.jsonl", "--run_dir", "runs/x"]
WORDS = {"TEXT": ["word"], "VALUE": ["word"], "INT": ["1", "2"], "NUMBER": ["0.5", "1", "1.5"]}
# What another key has to be for a key to be of use.
TOGETHER = {
    "merge": ["--adapter.method", "lora"],
    "data.loss_on": ["--data.format", "chat"],
    "threshold": ["--data.evaluation", "0.1"],
    "generation.top_p": ["--generation.temperature", "1"],
    "generation.length_penalty": ["--generation.num_beams", "2"],
    "train.evaluate_every": ["--data.evaluation", "0.1"],
    "train.early_stopping": ["--data.evaluation", "0.1", "--train.evaluate_every", "1"],
    "train.memory_gib": ["--train.gradient_checkpointing", "auto"],
    "loss.adversarial_radius": ["--loss.adversarial", "fgm"],
    "loss.adversarial_steps": ["--loss.adversarial", "pgd"],
    "augment.copies": ["--augment.swaps", "0.1"],
    "augment.word_dropout": ["--augment.copies", "1"],
    "augment.swaps": ["--augment.copies", "1"],
    "augment.character_noise": ["--augment.copies", "1"],
    "augment.function": ["--augment.copies", "1", "--augment.swaps", "0.1"],
    "teacher.unlabelled": ["--teacher.runs", "runs/a"],
    "teacher.min_confidence": ["--teacher.runs", "runs/a", "--teacher.unlabelled", "rows.jsonl"],
    "data.replay.share": ["--data.replay", "old.jsonl"],
    "data.streaming": ["--train.max_steps", "3"],
}


def config_class(name):
    return load_recipe(recipe_named(name)).Config


def shown_keys(text):
    """The keys of a help text, each with the form of its value and the method above it."""
    found, method = {}, None
    for line in text.splitlines():
        heading = re.fullmatch(r"with --adapter\.method (\w+):", line)
        if heading:
            method = heading[1]
        elif not line.strip():
            method = None
        entry = re.fullmatch(r"  --(\S+) (.+)", line)
        if entry and "  " not in entry[2]:
            found[entry[1], method] = entry[2]
    return found


def ways_to_write(form):
    """The ways to write a value that the help shows for a key: each a list of words."""
    ways = []
    if form.startswith("["):
        ways.append([])
        form = form.removeprefix("[").removesuffix("]")
    for choice in re.split(r"\|(?![^\[]*\.\.\.\])", form):
        item = choice.partition(" [")[0].partition("|")[0]
        if choice.endswith(" ...]"):
            ways += [[item], [item, item]]
        elif choice.startswith("'{"):
            ways.append(["{name: 0.5}" if "NUMBER" in choice else "{name: word}"])
        else:
            ways.append([item])
    return ways


def refusals(kind, before, key, way):
    """What a recipe says against a value that is written one way; nothing if it takes one."""
    found = []
    for words in itertools.product(*(WORDS.get(word, [word]) for word in way)):
        try:
            read(kind, [*NEEDED, *before, f"--{key}", *words])
        except ConfigError as refusal:
            found.append(f"{words}: {refusal}")
        else:
            return []
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_the_help_shows_is_accepted_as_it_is_shown(name):
    kind = config_class(name)
    for (key, method), form in shown_keys(help_text(kind, "recipe")).items():
        if key in ("config", "adapter.options", "data.encoding", "data.shares"):
            continue  # a file, names that PEFT and Python check, and a number for each file
        before = TOGETHER.get(key, [])
        if method is not None:
            before = ["--adapter.method", method]
        for way in ways_to_write(form):
            assert not refusals(kind, before, key, way), (key, way)


@pytest.mark.parametrize("name", NAMES)
def test_every_accepted_key_is_shown(name):
    kind = config_class(name)
    shown = shown_keys(help_text(kind, "recipe"))
    for key in keys(kind):
        if not key.sections:
            assert shown[key.name, key.method] == value_format(key)
    assert {"config", "run_dir", "data.replay.share", "train.epochs"} <= {key for key, _ in shown}
    assert {method for _, method in shown} >= {"lora", "adalora", "bottleneck", "prefix"}


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_sentence_of_help(name):
    for key in keys(config_class(name)):
        assert key.about.endswith("."), key.name


def test_the_help_of_a_recipe_answers_at_once_and_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", str(ROOT / "recipes" / "chat.py"), "--help"]
    started = time.monotonic()
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 3  # 0.3 s on an idle machine
    assert "--train.batch_size INT" in answer.stdout
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"torch", "peft", "transformers", "accelerate"}
