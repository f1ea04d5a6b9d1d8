"""What a training process settles before it loads anything: how many there are, cores, memory,
signals; and what it runs on.
"""

import argparse
import contextlib
import ctypes
import importlib.metadata
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from transformers.utils.logging import disable_progress_bar

_PACKAGES = (
    "peftkit",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
)


def prepare_process() -> None:
    """Start the processes that were asked for, and set this one up to train."""
    start_asked_processes()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # under `peftkit train` it was inherited as ignored
    _use_all_cores()
    if not torch.cuda.is_available():
        _keep_freed_memory()
    uses_cpu = (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    )  # only Accelerator itself looks for it
    if not (PartialState(cpu=uses_cpu).is_main_process and sys.stderr.isatty()):
        disable_progress_bar()


def start_asked_processes() -> None:
    """Start as many processes on the CPU as `accelerate launch` was asked for, by a flag or in its
    config file.

    Without MPI, Accelerate (1.15) starts one process for this and says nothing; then this process
    becomes torchrun.
    """
    alone = "WORLD_SIZE" not in os.environ and "MASTER_PORT" in os.environ
    if not alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return
    count = _asked_processes(psutil.Process().parent().cmdline())
    if count > 1:
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(count)]
        os.execv(
            sys.executable,
            [sys.executable, *torchrun, "--master_port", os.environ["MASTER_PORT"], *sys.argv],
        )


def _asked_processes(command: list[str]) -> int:
    """Return how many processes a command line of `accelerate launch` asks for."""
    # --config is the recipe's own, and no abbreviation of --config_file.
    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--num_processes", "--num-processes", type=int)
    launcher.add_argument("--config_file", "--config-file")
    launcher.add_argument("--cpu", action="store_true")
    asked, _ = launcher.parse_known_args(command)
    reads_config = asked.config_file is not None or (
        Path(default_config_file).is_file() and not asked.cpu
    )
    if asked.num_processes is None and reads_config:
        asked.num_processes = load_config_from_file(asked.config_file).num_processes
    return int(asked.num_processes or 1)


def launch_flags() -> list[str]:
    """Return the flags that `accelerate launch` was given for this process, to launch it again;
    none without a launcher.
    """
    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            flags = _flags_before(sys.argv[0], ancestor.cmdline())
            if flags is not None:
                return flags
    return []


def _flags_before(script: str, command: list[str]) -> list[str] | None:
    """Return the words between `accelerate launch` and the script in a command line, or None where
    it is another one's.
    """
    starts = [
        i for i, word in enumerate(command[:4]) if word in ("launch", "accelerate.commands.launch")
    ]
    if not starts or script not in command:
        return None
    return [
        word
        for word in command[starts[0] + 1 : command.index(script)]
        if word not in ("--quiet", "-q")
    ]


def environment() -> dict[str, Any]:
    """Return what decides how fast and how exactly a run computes: versions, processor, GPU,
    processes and threads.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "processes": PartialState().num_processes,
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _use_all_cores() -> None:
    """Share this machine's cores among its processes: `accelerate launch` leaves each process one
    thread on a CPU.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: giving each back to the system and faulting it in anew
    slows a CPU step down.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)
