"""Save an adapter as a PEFT directory, and load one: whole or not at all."""

import copy
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor
from transformers import PreTrainedModel

from peftkit.adapters.attaching import attach_reversibly
from peftkit.adapters.fingerprint import check_backbone, header_of, read_about
from peftkit.adapters.readme import README_NAME, readme_of
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
    write_file,
    write_json,
    write_tensors,
)
from peftkit.lean import Lean
from peftkit.methods.method import all_methods, method_of
from peftkit.methods.peft_registry import adapter_tensors, injecting


def save(model: PeftModel, directory: str | Path, *, name: str = "default") -> None:
    """Write the adapter as a PEFT directory, whole or not at all.

    The safetensors header carries a digest of the weights and the backbone's fingerprint, which
    `load` checks and others ignore. A README says how to load the adapter. Other files in the
    directory stay, also a README of yours.

    Raises:
        ConfigError: `model` has no adapter of that name.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        raise ConfigError(
            f"{type(model).__name__} has no adapter {name!r} to save; attach returns a model that "
            "has one"
        )
    tensors = adapter_tensors(model, name)
    if not tensors:
        raise ConfigError(f"the adapter {name!r} has no weights to save")
    write_adapter(model.get_base_model(), model.peft_config[name], tensors, directory)


def write_adapter(
    backbone: PreTrainedModel, config: PeftConfig, tensors: dict[str, Tensor], directory: str | Path
) -> None:
    """Write config and weights of an adapter of `backbone` as a PEFT directory; see `save`."""
    header = header_of(backbone, model_quantization(backbone))
    with staged_directory(Path(directory)) as stage:
        write_json(stage / CONFIG_NAME, _config_fields(backbone, config))
        write_tensors(stage / WEIGHTS_NAME, tensors, header)
        if not (Path(directory) / README_NAME).exists():
            write_file(stage / README_NAME, readme_of(backbone, config).encode())


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
        TargetError: the config names modules that the backbone does not have.
    """
    path = Path(directory)
    recover(path)
    config = _read_config(path)
    metadata, shapes = read_header(path / WEIGHTS_NAME)
    about = read_about(metadata, path) if verify_backbone else {}
    if about:
        check_backbone(about, backbone, path)
    tensors = read_tensors(path / WEIGHTS_NAME)
    bare = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    config, tensors = _converted(config, tensors, bare)
    method = method_of(config)
    _check_sides(method.sides(config), shapes, path)
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
        with injecting(method.peft_type, method.tuner_class):
            set_peft_model_state_dict(adapted, tensors, adapter_name=name)
        if not trainable:
            method.simplify(adapted, name)
    except BaseException:
        before.restore()
        raise
    return adapted


def _converted(
    config: PeftConfig, tensors: dict[str, Tensor], model: PreTrainedModel
) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Return config and weights of a file, as one of peftkit's methods reads it."""
    for method in all_methods():
        if isinstance(config, method.converts_from):
            return method.convert(config, tensors, model)
    return config, tensors


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
    all_methods()  # makes them known to PEFT
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


def _check_sides(sides: dict[str, int], shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse a size that no weight of the file has, before memory of that size is asked for."""
    if not shapes:
        return
    largest = 0
    for shape in shapes.values():
        largest = max(largest, *shape)
    for key, size in sides.items():
        if isinstance(size, int) and size > largest:
            raise AdapterFileError(
                f"{path}: {key} is {size}, but no weight in {WEIGHTS_NAME} has a side longer than "
                f"{largest}"
            )
