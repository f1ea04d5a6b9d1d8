"""Where the recipes are."""

from pathlib import Path


def recipes() -> dict[str, Path]:
    """Return the recipes by name: those of the installed package, or of the source tree that it is
    imported from.
    """
    here = Path(__file__).parents[1]
    directory = here / "_recipes" if (here / "_recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in directory.glob("*.py")}
