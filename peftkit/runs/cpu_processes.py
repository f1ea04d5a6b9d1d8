"""Several processes on the CPU, where `accelerate launch` was asked for them."""

import argparse
import os
import sys
from pathlib import Path

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file


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
