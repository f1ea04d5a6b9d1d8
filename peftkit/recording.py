"""What peftkit decided or measured about a model, kept with the model so that it can be asked for."""

from typing import Any

from torch import nn

_ATTRIBUTE = "_peftkit_record"


def record(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what peftkit decided and measured for `model`: plain data, keyed by the function that
    did it.

    ``"load_backbone"`` holds source, dtypes, sizes and the modules that stay 16-bit; ``"attach"``
    the resolved targets and the trained parameters; ``"lean"`` what of the training step is lean,
    and what is not, by reason; ``"checkpointing"`` the blocks that compute their activations again;
    ``"merge"`` the largest logit difference. A model that peftkit never saw has an empty record.
    """
    get_base_model = getattr(model, "get_base_model", None)
    base = get_base_model() if callable(get_base_model) else model
    return {**getattr(base, _ATTRIBUTE, {}), **model.__dict__.get(_ATTRIBUTE, {})}


def note(model: nn.Module, key: str, entry: dict[str, Any]) -> None:
    """Write `entry` under `key` into the record of `model`."""
    model.__dict__[_ATTRIBUTE] = {**model.__dict__.get(_ATTRIBUTE, {}), key: entry}


def extend(model: nn.Module, key: str, more: dict[str, Any]) -> None:
    """Add `more` to the entry under `key` in the record of `model`."""
    note(model, key, {**model.__dict__.get(_ATTRIBUTE, {}).get(key, {}), **more})


def summary(model: nn.Module) -> str:
    """Return the record's main points as lines for people."""
    known = record(model)
    lines = []
    if "load_backbone" in known:
        entry = known["load_backbone"]
        sizes = ", ".join(
            f"{size / 2**20:.0f} MiB {dtype}" for dtype, size in entry["size_bytes"].items()
        )
        random = " of random weights" if entry["weights"] == "random" else ""
        lines.append(f"backbone: {entry['class']} on {entry['device']}, {sizes}{random}")
        if entry["new"] and entry["weights"] != "random":
            lines.append(
                f"not in the checkpoint, so random at the start: {', '.join(entry['new'])}"
            )
        if entry["quantization"] is not None:
            lines.append(f"not quantised: {', '.join(entry['not_quantized'])}")
    if "attach" in known:
        entry = known["attach"]
        targets = (
            entry["targets"] if isinstance(entry["targets"], str) else ", ".join(entry["targets"])
        )
        lines.append(
            f"adapter: {entry['method']} on {entry['adapted_layers']} layers ({targets}), "
            f"{entry['trained_parameters']:,} trained parameters"
        )
    if "lean" in known:
        entry = known["lean"]
        others = "".join(
            f", {count} on PEFT's path ({reason})"
            for reason, count in entry["layers_of_peft"].items()
        )
        lines.append(
            f"lean: {entry['layers']} layers{others}; {entry.get('norms', 0)} norms, {entry.get('feed_forward', 0)} "
            f"feed-forward layers; the loss: {entry['loss']}"
        )
    if "merge" in known:
        entry = known["merge"]
        lines.append(
            f"merged into {entry['dtype']}: logits differ from the adapted model's by at most "
            f"{entry['largest_logit_difference']:.3g} on the probe batch, where the largest is {entry['largest_logit']:.3g}"
            if entry["largest_logit_difference"] is not None
            else f"merged into {entry['dtype']}: not compared, {entry['why']}"
        )
    return "\n".join(lines)
