"""Save an adapter as a PEFT directory, and load one: whole or not at all."""

import copy
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor
from transformers import PreTrainedModel

from peftkit import methods
from peftkit.adapters import fingerprint
from peftkit.adapters.attaching import attach_reversibly
from peftkit.backbones.quantization import model_quantization
from peftkit.errors import AdapterFileError, ConfigError, nearest
from peftkit.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_shapes,
    read_header,
    read_json,
    read_tensors,
    recover,
    staged_directory,
    write_json,
    write_tensors,
)
from peftkit.lean import Lean
from peftkit.methods.peft_registry import quiet_peft


def save(model: PeftModel, directory: str | Path, *, name: str = "default") -> None:
    """Write the adapter as a PEFT directory, whole or not at all.

    The safetensors header carries a digest of the weights and the backbone's fingerprint, which
    `load` checks and others ignore. Other files in the directory stay.

    Raises:
        ConfigError: `model` has no adapter of that name.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        raise ConfigError(
            f"{type(model).__name__} has no adapter {name!r} to save; attach returns a model that has"
        )
    tensors = adapter_tensors(model, name)
    if not tensors:
        raise ConfigError(f"the adapter {name!r} has no weights to save")
    write_adapter(model.get_base_model(), model.peft_config[name], tensors, directory)


def write_adapter(
    backbone: PreTrainedModel, config: PeftConfig, tensors: dict[str, Tensor], directory: str | Path
) -> None:
    """Write config and weights of an adapter of `backbone` as a PEFT directory; see `save`."""
    about = fingerprint.as_metadata(fingerprint.of(backbone), model_quantization(backbone))
    with staged_directory(Path(directory)) as stage:
        write_json(stage / CONFIG_NAME, _config_fields(backbone, config))
        write_tensors(stage / WEIGHTS_NAME, tensors, {"peftkit": about})


def load(
    backbone: PreTrainedModel | PeftModel,
    directory: str | Path,
    *,
    trainable: bool = False,
    verify_backbone: bool = True,
    name: str = "default",
    lean: Lean | bool = True,
) -> PeftModel:
    """Attach the adapter of a PEFT directory to a backbone: checked first, then all or nothing.

    Args:
        backbone: The model it was trained on, in any precision; or that model with adapters, which
            gets one more.
        directory: What `save`, or PEFT's ``save_pretrained``, wrote.
        trainable: True to train on; False for inference.
        verify_backbone: False loads an adapter on another backbone of the same shapes.
        name: The adapter's name in PEFT.
        lean: See `attach`.

    Raises:
        AdapterFileError: the directory is incomplete or damaged, or its weights are not those its
            config declares.
        BaseMismatchError: the adapter was trained on another backbone.
        NonFiniteError: a weight is NaN or infinite.
        TargetError: the config names modules that the backbone has not.
    """
    path = Path(directory)
    recover(path)
    config = _read_config(path)
    metadata, shapes = read_header(path / WEIGHTS_NAME)
    if verify_backbone and "peftkit" in metadata:
        fingerprint.check(metadata["peftkit"], backbone, path)
    tensors = read_tensors(path / WEIGHTS_NAME)
    _check_rank(config, shapes, path)
    config, tensors = methods.converted(config, tensors, backbone)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    config.inference_mode = not trainable
    if getattr(config, "modules_to_save", []) is None:
        config.modules_to_save = []  # nothing in the file is trained whole
    adapted, before = attach_reversibly(backbone, config, name, lean)
    try:
        check_shapes(
            shapes,
            {key: tuple(value.shape) for key, value in adapter_tensors(adapted, name).items()},
            path,
        )
        with methods.injection(config):
            set_peft_model_state_dict(adapted, tensors, adapter_name=name)
        if not trainable:
            methods.simplify(adapted, name)
    except BaseException:
        before.restore()
        raise
    return adapted


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """Return the adapter's weights under the names that they have in its file."""
    with quiet_peft():
        tensors: dict[str, Tensor] = get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=False
        )
    return tensors


def _config_fields(backbone: PreTrainedModel, config: PeftConfig) -> dict[str, Any]:
    """Return the config as PEFT writes it, in a stable order."""
    config = copy.deepcopy(config)
    config.inference_mode = True
    if config.task_type is None:
        config.auto_mapping = {
            "base_model_class": type(backbone).__name__,
            "parent_library": type(backbone).__module__,
        }
    fields = {"peft_version": peft.__version__, **config.to_dict()}
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()
    }


def _read_config(path: Path) -> PeftConfig:
    """Read and check ``adapter_config.json``; a path is never looked up on the Hub."""
    file = path / CONFIG_NAME
    if not file.is_file():
        raise AdapterFileError(
            f"{file} is missing; an adapter directory holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    fields = read_json(file)
    kind = fields.pop("peft_type", None)
    fields.pop("peft_version", None)
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterFileError(f"{file}: peft_type is {kind!r}, which PEFT does not know")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = config_class.__dataclass_fields__
    for key, value in list(fields.items()):
        if key not in known:
            if value not in (None, False):  # a newer PEFT writes its new options, switched off
                raise AdapterFileError(f"{file}: unknown key {key!r}{nearest(key, known)}")
            del fields[key]
    try:
        config: PeftConfig = config_class(**fields)
    except (TypeError, ValueError) as problem:
        raise AdapterFileError(f"{file}: {problem}") from problem
    return config


def _check_rank(config: PeftConfig, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse a rank that no weight of the file has, before memory of that size is asked for."""
    ranks = [config.r, *config.rank_pattern.values()] if config.peft_type == "LORA" else []
    ranks += [config.init_r] if config.peft_type == "ADALORA" else []
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    lengths = [
        getattr(config, key)
        for key in ("num_virtual_tokens", "encoder_hidden_size")
        if hasattr(config, key)
    ]
    if (
        config.peft_type == "PREFIX"
        and max(lengths[: 1 + config.prefix_projection]) > largest
        and shapes
    ):
        raise AdapterFileError(
            f"{path}: the prefix has a side of {max(lengths)}, but no weight in {WEIGHTS_NAME} one longer than {largest}"
        )
    if any(isinstance(rank, int) and rank > largest for rank in ranks) and shapes:
        raise AdapterFileError(
            f"{path}: r is {max(ranks)}, but no weight in {WEIGHTS_NAME} has a side longer than {largest}"
        )
