"""The section `adapter` of a recipe's config: one class for each method, chosen by `method`.

Imports nothing heavy, so that `--help` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from peftkit.methods import NAMES
from peftkit.methods.settings import AdapterSettings


def settings_of(name: str) -> type[AdapterSettings]:
    """Return the section of the method with this name."""
    module = importlib.import_module(f"peftkit.methods.{name}.settings")
    settings: type[AdapterSettings] = module.Settings
    return settings


def _chosen_method(values: Any) -> str:
    """Return which method a section is for: the one that it names, or the default."""
    if isinstance(values, dict):
        return str(values.get("method", NAMES[0]))
    return str(getattr(values, "method", NAMES[0]))


DefaultSettings = settings_of(NAMES[0])

if TYPE_CHECKING:
    Adapter = AdapterSettings
else:
    _tagged = tuple(Annotated[settings_of(name), Tag(name)] for name in NAMES)
    Adapter = Annotated[Union[_tagged], Discriminator(_chosen_method)]  # noqa: UP007 -- of a tuple
