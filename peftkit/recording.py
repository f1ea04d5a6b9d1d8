"""What peftkit decided or measured about a model, kept with the model."""

from typing import Any

from torch import nn

_ATTRIBUTE = "_peftkit_record"


def record(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what peftkit decided and measured for `model`: plain data, by what it is about.

    ``"load_backbone"`` holds the source, dtypes, sizes, and the modules that stay in 16 bits;
    ``"attach"`` the resolved targets and the number of trained parameters; ``"lean"`` which parts
    of the training step are lean, and which are not, by reason; ``"checkpointing"`` the blocks that
    recompute their activations; ``"merge"`` the largest logit difference. A model that peftkit
    never saw has an empty record.
    """
    get_base_model = getattr(model, "get_base_model", None)
    base = get_base_model() if callable(get_base_model) else model
    return {**getattr(base, _ATTRIBUTE, {}), **vars(model).get(_ATTRIBUTE, {})}


def note(model: nn.Module, key: str, entry: dict[str, Any]) -> None:
    """Write `entry` under `key` into the record of `model`."""
    vars(model)[_ATTRIBUTE] = {**vars(model).get(_ATTRIBUTE, {}), key: entry}


def extend(model: nn.Module, key: str, more: dict[str, Any]) -> None:
    """Add `more` to the entry under `key` in the record of `model`."""
    note(model, key, {**vars(model).get(_ATTRIBUTE, {}).get(key, {}), **more})


def summary(model: nn.Module) -> str:
    """Return the main points of a model's record as sentences, one a line."""
    known = record(model)
    lines: list[str] = []
    if "load_backbone" in known:
        lines += _describe_backbone(known["load_backbone"])
    if "attach" in known:
        lines.append(_describe_adapter(known["attach"]))
    if "lean" in known:
        lines.append(_describe_lean_step(known["lean"]))
    if "merge" in known:
        lines.append(_describe_merge(known["merge"]))
    return "\n".join(lines)


def _describe_backbone(entry: dict[str, Any]) -> list[str]:
    sizes = [f"{size / 2**20:.0f} MiB {dtype}" for dtype, size in entry["size_bytes"].items()]
    is_random = entry["weights"] == "random"
    line = f"backbone: {entry['class']} on {entry['device']}, {', '.join(sizes)}"
    lines = [f"{line} of random weights" if is_random else line]
    if entry["new"] and not is_random:
        lines.append(f"not in the checkpoint, so random at the start: {', '.join(entry['new'])}")
    if entry["quantization"] is not None:
        lines.append(f"not quantised: {', '.join(entry['not_quantized'])}")
    return lines


def _describe_adapter(entry: dict[str, Any]) -> str:
    targets = entry["targets"]
    if not isinstance(targets, str):
        targets = ", ".join(targets)
    return (
        f"adapter: {entry['method']} on {entry['adapted_layers']} layers ({targets}), "
        f"{entry['trained_parameters']:,} trained parameters"
    )


def _describe_lean_step(entry: dict[str, Any]) -> str:
    layers = f"{entry['layers']} layers"
    for reason, count in entry["layers_of_peft"].items():
        layers += f", {count} on PEFT's path ({reason})"
    return (
        f"lean: {layers}; {entry.get('norms', 0)} norms, {entry.get('feed_forward', 0)} "
        f"feed-forward layers; the loss: {entry['loss']}"
    )


def _describe_merge(entry: dict[str, Any]) -> str:
    if entry["largest_logit_difference"] is None:
        return f"merged into {entry['dtype']}: not compared, {entry['why']}"
    return (
        f"merged into {entry['dtype']}: logits differ from the adapted model's by at most "
        f"{entry['largest_logit_difference']:.3g} on the probe batch, where the largest is "
        f"{entry['largest_logit']:.3g}"
    )
