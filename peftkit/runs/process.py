"""What a run sets for its whole process, and what it runs on."""

import ctypes
import importlib.metadata
import os
import platform
import signal
import sys
from typing import Any

import torch
from accelerate import PartialState
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
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def prepare_process() -> list[str]:
    """Set this process up to train, and return what was set, a phrase each.

    The process keeps these settings: only a run calls this, and it says what they are.
    """
    # `peftkit train` ignores Ctrl-C while it waits, and its child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    changes = [_use_all_cores()]
    if not torch.cuda.is_available() and keep_freed_memory():
        changes.append("freed memory is kept by glibc")
    # PartialState does not look at this variable; only Accelerator does.
    uses_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = PartialState(cpu=uses_cpu)
    if not state.is_main_process or not sys.stderr.isatty():
        disable_progress_bar()
        changes.append("transformers shows no progress bars")
    return changes


def _use_all_cores() -> str:
    """Share this machine's cores among its processes.

    On a CPU, `accelerate launch` leaves each process one thread.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, cores // processes)
    torch.set_num_threads(threads)
    return f"CPU threads: {threads}"


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks, and return whether it could be told to.

    Giving each block back to the system and faulting it in again slows a CPU step down.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return True


def environment() -> dict[str, Any]:
    """Return what decides how fast and how exactly a run computes.

    These are the versions, the processor, the GPU, and the counts of processes and threads.
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
