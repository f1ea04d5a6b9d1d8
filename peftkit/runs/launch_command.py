"""The `accelerate launch` command that starts a recipe: built, and found again."""

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence

import psutil

from peftkit.config.shipped import launch_preset

_LAUNCHER = "peftkit.internals.accelerate_launch"
# What `accelerate launch` can be called in a command line.
_LAUNCHERS = ("launch", "accelerate.commands.launch", _LAUNCHER)
TYPED_COMMAND = "PEFTKIT_COMMAND"
"""The environment variable in which `peftkit train` leaves its own command line."""


def launch_command(options: Sequence[str], script: str, words: Sequence[str]) -> list[str]:
    """Return the command line that launches a recipe.

    Args:
        options: Those of `accelerate launch`; ``--config_file`` also takes the name of a preset.
        script: The recipe's file.
        words: The recipe's own options.
    """
    return [sys.executable, "-m", _LAUNCHER, "--quiet", *_with_preset(options), script, *words]


def _with_preset(options: Sequence[str]) -> list[str]:
    """Return Accelerate's options with the file of a preset in place of its name."""
    found = list(options)
    for place, word in enumerate(found):
        name, equals, value = word.partition("=")
        if name not in ("--config_file", "--config-file"):
            continue
        if equals:
            found[place] = f"{name}={launch_preset(value)}"
        elif place + 1 < len(found):
            found[place + 1] = launch_preset(found[place + 1])
    return found


def typed_command() -> str:
    """Return the command line that started this run, as the user typed it."""
    typed = os.environ.get(TYPED_COMMAND)
    if typed is not None:
        return typed
    flags = _launch_flags()
    if flags is None:
        return shlex.join(["python", *sys.argv])
    return shlex.join(["accelerate", "launch", *flags, *sys.argv])


def _launch_flags() -> list[str] | None:
    """Return the flags that `accelerate launch` got for this process; None without a launcher."""
    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            flags = _flags_before(sys.argv[0], ancestor.cmdline())
            if flags is not None:
                return flags
    return None


def _flags_before(script: str, command: list[str]) -> list[str] | None:
    """Return the words between `accelerate launch` and the script; None in any other command."""
    if script not in command:
        return None
    script_place = command.index(script)
    for place, word in enumerate(command[:4]):
        if word in _LAUNCHERS:
            return command[place + 1 : script_place]
    return None
