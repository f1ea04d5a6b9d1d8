"""One exception for each kind of mistake a user can make.

Each message says what is wrong, where, and what to do instead.
"""

import difflib
from collections.abc import Iterable


class PeftkitError(Exception):
    """The base class of every error of peftkit."""


class ConfigError(PeftkitError, ValueError):
    """A setting is unknown, has the wrong type, is out of bounds, or contradicts another."""


class BackboneError(PeftkitError, ValueError):
    """A backbone cannot be found, read or quantised."""


class TargetError(PeftkitError, ValueError):
    """A module that a config names is not in the model, or cannot carry the adapter."""


class AdapterFileError(PeftkitError, ValueError):
    """An adapter directory is incomplete or damaged, or does not fit its own config."""


class BaseMismatchError(AdapterFileError):
    """An adapter was trained on another backbone than the one it is loaded on."""


class DataError(PeftkitError, ValueError):
    """A data set cannot be read, or holds nothing to learn from."""


class EmptyRowError(DataError):
    """A row holds nothing to learn from; `data.skip_empty` leaves such rows out."""


class CheckpointError(PeftkitError, ValueError):
    """A training checkpoint is damaged, or belongs to another run."""


class NonFiniteError(PeftkitError, ArithmeticError):
    """A loss, a gradient or a weight is not a number."""


class OutOfMemoryError(PeftkitError, RuntimeError):
    """The device has too little memory. The message names the settings that need less."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate most like `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
