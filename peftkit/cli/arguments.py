"""Checks of arguments, before the work begins."""

import argparse
from pathlib import Path

from peftkit.errors import ConfigError


def positive(text: str) -> int:
    """Return a whole number above 0; for argparse, as the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def check_output(path: str | None) -> None:
    """Refuse an output file that cannot be written.

    Raises:
        ConfigError: its directory does not exist, or it is a directory.
    """
    if path is None:
        return
    if not Path(path).parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no directory {Path(path).parent}")
    if Path(path).is_dir():
        raise ConfigError(f"cannot write {path}: it is a directory")
