"""Find a recipe by its name, and import it."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from peftkit.config.shipped import shipped_directory
from peftkit.errors import ConfigError, nearest


def recipes() -> dict[str, Path]:
    """Return the recipes that ship with peftkit, by name."""
    return {path.stem: path for path in shipped_directory().glob("*.py")}


def recipe_named(name: str) -> Path:
    """Return the file of one of peftkit's recipes, or of a recipe given by its path.

    Raises:
        ConfigError: there is none.
    """
    known = recipes()
    found = Path(name) if name.endswith(".py") else known.get(name)
    if found is None or not found.is_file():
        names = ", ".join(sorted(known))
        raise ConfigError(f"there is no recipe {name!r}; recipes are {names}{nearest(name, known)}")
    return found


def load_recipe(path: Path) -> Any:
    """Import a recipe from its file; it has a class `Config` and a function `task`."""
    name = f"peftkit_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks up the module of a class by its name
    spec.loader.exec_module(module)
    return module
