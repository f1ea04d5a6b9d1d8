"""What `accelerate launch` was asked for: how many processes to start, and the command itself."""

import argparse
import contextlib
import os
import shlex
import sys
from pathlib import Path

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file

# What `accelerate launch` can be called in a command line: the last is `peftkit train`'s own start.
_LAUNCHERS = ("launch", "accelerate.commands.launch", "peftkit.internals.accelerate_launch")
_TYPED_COMMAND = "PEFTKIT_COMMAND"  # `peftkit train` leaves its own command line there


def start_requested_processes() -> None:
    """Start as many CPU processes as `accelerate launch` was asked for, by a flag or a config file.

    Without MPI, Accelerate (1.15) starts one process and says nothing. Then this process says what
    it does and becomes torchrun, which runs the same command line in each of the processes.
    """
    is_alone = "WORLD_SIZE" not in os.environ and "MASTER_PORT" in os.environ
    if not is_alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return
    count = _requested_count(psutil.Process().parent().cmdline())
    if count == 1:
        return
    print(f"starting {count} CPU processes with torchrun", file=sys.stderr, flush=True)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    torchrun += ["--master_port", os.environ["MASTER_PORT"]]
    os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])


def _requested_count(command: list[str]) -> int:
    """Return how many processes a command line of `accelerate launch` asks for."""
    # No abbreviations: --config is the recipe's own option, and not short for --config_file.
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--num_processes", "--num-processes", type=int)
    launcher.add_argument("--config_file", "--config-file")
    launcher.add_argument("--cpu", action="store_true")
    options, _ = launcher.parse_known_args(command)
    if options.num_processes is not None:
        return int(options.num_processes)
    uses_default_config = Path(default_config_file).is_file() and not options.cpu
    if options.config_file is None and not uses_default_config:
        return 1
    return int(load_config_from_file(options.config_file).num_processes or 1)


def typed_command() -> str:
    """Return the command line that started this run, as the user typed it."""
    typed = os.environ.get(_TYPED_COMMAND)
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
