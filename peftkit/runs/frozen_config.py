"""The config that a run leaves in its directory, compared with that of a new start.

It imports nothing heavy, so that a finished run is told in no time.
"""

from pathlib import Path
from typing import Any

from yaml import safe_load

from peftkit.config.flattening import flatten
from peftkit.config.reading import load_yaml, to_yaml

CONFIG = "config.yaml"
REPORT = "report.md"  # is written last
ADAPTER = "adapter"

_MAY_CHANGE = {"train.resume", "train.trackers"}  # keys that a resumed run may set anew


def changed_keys(config: Any, file: Path) -> list[str]:
    """Return the keys in which a config differs from the one in a file, but for those that may."""
    old = flatten(load_yaml(file))
    new = flatten(safe_load(to_yaml(config)))
    changed = []
    for key in sorted(old.keys() | new.keys()):
        if key not in _MAY_CHANGE and old.get(key) != new.get(key):
            changed.append(key)
    return changed


def describe_finished(config: Any) -> str | None:
    """Return where everything is if the run that a config asks for is finished; None if not.

    Args:
        config: The recipe's config. Only with ``train.resume`` "auto" there is nothing to do.
    """
    directory = Path(config.run_dir)
    report, adapter = directory / REPORT, directory / ADAPTER
    if config.train.resume != "auto" or not (report.exists() and adapter.is_dir()):
        return None
    if changed_keys(config, directory / CONFIG):
        return None
    return (
        f"this run is finished: the report is {report}, the adapter {adapter}; to train once more, "
        "set another run_dir"
    )
