"""Every shipped config parses, and tells which key is misspelt; recipes stay short and share no
blocks.
"""

import copy
import itertools

import pytest
import yaml

from peftkit.config.reading import build, load_yaml
from peftkit.errors import ConfigError
from peftkit.runs.recipes import load_recipe, recipes
from tests.recipes.jobs import NAMES, ROOT

CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
IDS = [f"{path.parent.name}/{path.stem}" for path in CONFIGS]


def config_class(path):
    return load_recipe(ROOT / "recipes" / f"{path.parent.name}.py").Config


def key_paths(values, prefix=()):
    """The places of all keys; what stands under `columns` and `options` are not peftkit's own
    names.
    """
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict) and key not in ("columns", "options"):
            yield from key_paths(value, (*prefix, key))


def test_every_recipe_has_configs_and_a_quick_one():
    assert set(recipes()) == set(NAMES)
    assert {path.parent.name for path in CONFIGS} == set(NAMES)
    for name in NAMES:
        assert any("quick" in path.stem for path in CONFIGS if path.parent.name == name), name


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_a_config_parses_and_its_first_line_says_what_it_is_for(path):
    config = build(config_class(path), load_yaml(path), str(path))
    assert config.run_dir
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "CPU" in first or "card" in first


@pytest.mark.parametrize("path", CONFIGS, ids=IDS)
def test_each_misspelt_key_is_refused_by_its_name_with_the_right_one(path):
    kind, values = config_class(path), load_yaml(path)
    for place in key_paths(values):
        wrong = copy.deepcopy(values)
        *parents, last = place
        section = wrong
        for parent in parents:
            section = section[parent]
        misspelt = last[:-1] + "xq" if len(last) > 1 else last + "q"
        section[misspelt] = section.pop(last)
        with pytest.raises(ConfigError) as refusal:
            build(kind, wrong, "a config")
        message = str(refusal.value)
        assert f"{'.'.join([*parents, misspelt])}: unknown key" in message, (place, message)
        if len(last) > 3:
            assert f"did you mean {last!r}" in message, (place, message)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_one_screen(name):
    assert len((ROOT / "recipes" / f"{name}.py").read_text().splitlines()) <= 120


def test_two_recipes_share_no_block_of_six_lines():
    blocks = {}
    for name in NAMES:
        text = (ROOT / "recipes" / f"{name}.py").read_text()
        lines = [
            line.strip()
            for line in text.splitlines()
            if line.strip() and not line.startswith(("from ", "import "))
        ]
        blocks[name] = {tuple(lines[i : i + 6]) for i in range(len(lines) - 5)}
    for one, other in itertools.combinations(NAMES, 2):
        assert not blocks[one] & blocks[other], (one, other, blocks[one] & blocks[other])


def test_configs_are_plain_yaml():
    for path in CONFIGS:
        assert yaml.safe_load(path.read_text())
