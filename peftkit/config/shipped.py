"""Find the recipes, configs, data and launch presets of peftkit, and files in other packages.

In an installed package they are in ``peftkit/recipes``, in a source tree in ``recipes`` beside
``peftkit``. Both are ``package:peftkit/recipes``.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

from peftkit.errors import ConfigError, PeftkitError, nearest

PACKAGE_PREFIX = "package:"


def shipped_directory() -> Path:
    """Return the directory of the recipes."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def config_file(name: str) -> Path:
    """Return the YAML file of a config: a path, or the name of a config that ships with peftkit.

    Args:
        name: A path that exists, or a name such as ``chat/quickstart``, with or without ``.yaml``.

    Raises:
        ConfigError: there is neither.
    """
    found = _file_or_shipped(name, shipped_directory() / "configs")
    if found is None:
        hint = nearest(name.removesuffix(".yaml"), shipped_configs())
        raise ConfigError(
            f"cannot read the config {name}: there is no such file, and no config of that name "
            f"ships with peftkit{hint}"
        )
    return found


def shipped_configs() -> list[str]:
    """Return the names of the configs that ship with peftkit, such as ``chat/quickstart``."""
    directory = shipped_directory() / "configs"
    files = sorted(directory.glob("*/*.yaml"))
    return [file.relative_to(directory).with_suffix("").as_posix() for file in files]


def launch_preset(name: str) -> str:
    """Return the file of a preset for `accelerate launch`, such as ``ddp``.

    A path that exists wins. Any other word is returned as it is, for Accelerate to judge.
    """
    found = _file_or_shipped(name, shipped_directory() / "accelerate")
    return name if found is None else str(found)


def package_file(source: str, error: type[PeftkitError]) -> Path:
    """Return the path of ``package:NAME/FILE``, a file or directory in an installed package.

    Args:
        source: NAME is the name that pip shows, or the one that Python imports. The package is not
            imported, because that may need other packages.
        error: What to raise.

    Raises:
        PeftkitError: the package is not installed. A FILE that is missing is not noticed here.
    """
    name, _, file = source.removeprefix(PACKAGE_PREFIX).partition("/")
    directories = _package_directories(name)
    if not directories:
        raise error(f"{source}: the Python package {name!r} is not installed")
    for directory in directories:
        if (directory / file).exists():
            return directory / file
    return directories[0] / file


def _package_directories(name: str) -> list[Path]:
    """Return the directories of a package; a distribution may have several."""
    if name == "peftkit":
        return [shipped_directory().parent]
    if name.isidentifier():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            return [Path(location) for location in spec.submodule_search_locations]
    if not name:
        return []
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for path in files:
        if path.name == "__init__.py" and len(path.parts) == 2:
            found.append(Path(str(path.locate())).parent)
    return found


def _file_or_shipped(name: str, directory: Path) -> Path | None:
    if Path(name).is_file():
        return Path(name)
    for candidate in (directory / name, directory / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    return None
