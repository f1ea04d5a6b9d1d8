"""Checks before anything is loaded: the settings, and how the processes were launched."""

import os

from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError

_FSDP_OPTIONS = {
    "OFFLOAD_PARAMS": "nobody has tried it with quantised weights",
    "CPU_RAM_EFFICIENT_LOADING": "each process loads the backbone by itself",
    "ACTIVATION_CHECKPOINTING": "train.gradient_checkpointing does that",
}


def uses_fsdp() -> bool:
    """Whether `accelerate launch` was asked to use FSDP."""
    return _is_true("ACCELERATE_USE_FSDP")


def check_launch(
    train: TrainSettings,
    quantization: str | None,
    why_not_sharded: str | None = None,
    processes: int | None = None,
) -> None:
    """Refuse settings that cannot be right on the processes that `accelerate launch` has started.

    Args:
        train: The section `train`.
        quantization: How the backbone is stored.
        why_not_sharded: Why the adapter's method cannot be trained in shards; None if it can.
        processes: How many there are; None takes the number from the environment.

    Raises:
        ConfigError: the examples of a step are not ``global_batch_size``; ``auto_batch`` or
            ``gradient_checkpointing: auto`` on several processes; DeepSpeed; or something that FSDP
            cannot do.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if processes is None else processes
    step = train.batch_size * train.accumulate * count
    is_launched = processes is not None or "WORLD_SIZE" in os.environ
    if is_launched and train.global_batch_size not in (None, step):
        raise ConfigError(
            f"train.global_batch_size is {train.global_batch_size}, but batch_size "
            f"{train.batch_size} x accumulate {train.accumulate} x {count} process(es) is {step}"
        )
    if train.auto_batch and count > 1:
        raise ConfigError(
            "train.auto_batch works on one process only; set train.batch_size to what fits"
        )
    if train.gradient_checkpointing == "auto" and count > 1:
        raise ConfigError(
            "train.gradient_checkpointing: auto measures one process only; set a share of the "
            "blocks, such as 0.5"
        )
    if _is_true("ACCELERATE_USE_DEEPSPEED"):
        _refuse_deepspeed(quantization)
    if uses_fsdp():
        _check_fsdp(quantization, why_not_sharded)


def _refuse_deepspeed(quantization: str | None) -> None:
    if quantization is not None:
        raise ConfigError(
            "DeepSpeed ZeRO-3 does not partition bitsandbytes weights: every process would hold "
            "the whole backbone; use the launch preset fsdp2_qlora"
        )
    raise ConfigError(
        "this loop does not train under DeepSpeed, which steps and partitions the weights itself; "
        "use the launch preset fsdp2_qlora, or transformers.Trainer"
    )


def _check_fsdp(quantization: str | None, why_not_sharded: str | None) -> None:
    for name, remark in _FSDP_OPTIONS.items():
        if _is_true(f"FSDP_{name}"):
            raise ConfigError(
                f"fsdp_{name.lower()}: true is not supported, {remark}; set it to false"
            )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "FSDP 1 cannot shard a frozen backbone together with a trained adapter; set "
            "fsdp_version: 2"
        )
    if quantization == "int8":
        raise ConfigError(
            "FSDP cannot shard int8 weights, whose scales are stored apart from them; load the "
            "model in nf4"
        )
    if why_not_sharded is not None:
        raise ConfigError(why_not_sharded)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"
