"""Combine adapters from their files alone: sums of updates, and means of parameters."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from peftkit.adapters.fingerprint import as_header, differing_key, read_about
from peftkit.errors import BaseMismatchError, ConfigError
from peftkit.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_header,
    read_json,
    read_tensors,
    recover,
    staged_directory,
    write_json,
    write_tensors,
)
from peftkit.methods.method import Method, method_of_type
from peftkit.methods.stored import StoredAdapter, normalized, weighted_sum

# Fields that may differ between adapters whose parameters are averaged: no output depends on them.
_NOT_COMPUTED_WITH = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "deltaT",
        "dropout",
        "inference_mode",
        "lora_dropout",
        "orth_reg_weight",
        "peft_version",
        "revision",
        "target_modules",
        "tfinal",
        "tinit",
        "total_step",
    }
)


def combine(
    adapters: Mapping[str | Path, float],
    output: str | Path,
    *,
    how: Literal["update", "parameters"] = "update",
    normalize: bool | None = None,
    verify_backbone: bool = True,
) -> None:
    """Combine adapters of one backbone and write the result as a PEFT directory.

    The directory is written whole or not at all.

    "update" adds up what plain LoRA adapters (arXiv:2106.09685) do to the weights: sum_i w_i
    (alpha_i / r_i) B_i A_i, exactly, as one LoRA adapter whose rank is the sum of theirs and whose
    scale is 1. A layer that an adapter leaves alone counts as zero. A negative weight takes an
    update away: task arithmetic (arXiv:2212.04089).

    "parameters" takes the mean of every parameter by itself: a soup (arXiv:2203.05482) of adapters
    of any one method and of equal shapes, trained from the same start. The mean of two LoRA
    adapters' factors is not the mean of their updates.

    Modules that are trained whole, such as a head, are averaged in both, with weights that sum
    to 1.

    Args:
        adapters: Adapter directories and their weights; a weight is finite and not 0.
        output: The directory to write; other files in it stay.
        how: What is added up.
        normalize: Divide the weights by their sum; None does so for "parameters" only.
        verify_backbone: False combines adapters of different backbones of the same shapes.

    Raises:
        ConfigError: a weight is not a finite number or is 0, the weights to normalise sum to 0,
            `output` is one of the adapters, or they cannot be combined in this way.
        AdapterFileError: a directory is incomplete or damaged, or shapes differ.
        BaseMismatchError: the adapters were trained on different backbones.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    if how not in ("update", "parameters"):
        raise ConfigError(f"how is {how!r}; it is 'update' or 'parameters'")
    _check_arguments(adapters, Path(output))
    stored = [_read(Path(path), weight) for path, weight in adapters.items()]
    for other in stored[1:]:
        _check_same_method(stored[0], other)
        if verify_backbone:
            _check_same_backbone(stored[0], other)
    weights = [adapter.weight for adapter in stored]
    if normalize is None:
        normalize = how == "parameters"
    if normalize:
        weights = normalized(weights, "the weights")
    if how == "update":
        config, tensors = _method_of(stored[0]).sum_of_updates(stored, weights)
    else:
        config, tensors = _sum_of_parameters(stored, weights)
    with staged_directory(Path(output)) as stage:
        write_json(stage / CONFIG_NAME, config)
        write_tensors(stage / WEIGHTS_NAME, tensors, _common_header(stored))


def _check_arguments(adapters: Mapping[str | Path, float], output: Path) -> None:
    if not adapters:
        raise ConfigError("there is no adapter to combine")
    for path, weight in adapters.items():
        if not math.isfinite(weight) or weight == 0:
            raise ConfigError(
                f"the weight of {path} is {weight}; it must be a finite number, and not 0"
            )
        if Path(path).resolve() == output.resolve():
            raise ConfigError(f"{output} is one of the adapters; name another directory to write")


def _read(path: Path, weight: float) -> StoredAdapter:
    recover(path)
    config = read_json(path / CONFIG_NAME)
    metadata, _ = read_header(path / WEIGHTS_NAME)
    about = read_about(metadata, path)
    return StoredAdapter(path, weight, config, read_tensors(path / WEIGHTS_NAME), about)


def _method_of(adapter: StoredAdapter) -> Method:
    method = method_of_type(str(adapter.config.get("peft_type")))
    return Method() if method is None else method


def _check_same_method(one: StoredAdapter, other: StoredAdapter) -> None:
    kind, other_kind = one.config.get("peft_type"), other.config.get("peft_type")
    if kind != other_kind:
        raise ConfigError(
            f"{one.path} is a {kind} adapter, and {other.path} a {other_kind} adapter"
        )


def _check_same_backbone(one: StoredAdapter, other: StoredAdapter) -> None:
    """Compare what the headers say of the backbones, or, without headers, the configs' names."""
    override = "pass verify_backbone=False to combine them all the same"
    if not (one.about and other.about):
        name, other_name = (
            adapter.config.get("base_model_name_or_path") for adapter in (one, other)
        )
        if name != other_name:
            raise BaseMismatchError(
                f"{one.path} names the backbone {name}, and {other.path} {other_name}; if that is "
                f"the same model under two names, {override}"
            )
        return
    mine, theirs = one.about["backbone"], other.about["backbone"]
    key = differing_key(mine, theirs)
    if key == "samples":
        raise BaseMismatchError(
            f"{one.path} and {other.path} were trained on backbones of the same shape with "
            f"different weights; {override}"
        )
    if key is not None:
        raise BaseMismatchError(
            f"{one.path} was trained on a backbone with {key} {mine.get(key)}, and {other.path} "
            f"with {theirs.get(key)}"
        )


def _common_header(adapters: Sequence[StoredAdapter]) -> dict[str, str]:
    """Return the header of the result: the backbone, and its quantisation if all had the same."""
    about = dict(adapters[0].about)
    if not about:
        return {}
    quantizations = {adapter.about.get("quantization") for adapter in adapters}
    about["quantization"] = quantizations.pop() if len(quantizations) == 1 else None
    return as_header(about)


def _sum_of_parameters(
    adapters: Sequence[StoredAdapter], weights: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of an adapter whose parameters are weighted sums."""
    first = adapters[0]
    for other in adapters[1:]:
        differing = []
        for key in sorted(first.config.keys() | other.config.keys()):
            is_computed_with = key not in _NOT_COMPUTED_WITH
            # A field that is left out is one that is null, empty or off.
            if is_computed_with and (first.config.get(key) or None) != (
                other.config.get(key) or None
            ):
                differing.append(key)
        if differing:
            raise ConfigError(
                f"{first.path} and {other.path} differ in {', '.join(differing)}, so that the mean "
                "of their parameters means nothing; take how='update' for LoRA"
            )
    tensors = [adapter.tensors for adapter in adapters]
    return first.config, weighted_sum(adapters, tensors, weights)
