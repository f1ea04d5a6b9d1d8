"""attach, detach, save, load: all or nothing."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftkit import fingerprint, methods
from peftkit.errors import AdapterFileError, ConfigError, TargetError, nearest
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
from peftkit.quantization import keep_layout, model_quantization
from peftkit.recording import note

_SNAPSHOT = "_peftkit_snapshot"


def attach(model: PreTrainedModel, config: PeftConfig, *, name: str = "default") -> PeftModel:
    """Attach an adapter to a transformers model, all or nothing, and return the model ready to train.

    Targets that the config leaves open are resolved from the model's structure. The adapter's parameters are float32; the
    backbone is frozen and keeps its dtypes. When attaching fails, the model is as it was.

    Args:
        model: The backbone; float, 8-bit or 4-bit. It is changed in place, and `detach` undoes that.
        config: ``LoraConfig``. It is not changed; what was resolved stands in ``record(model)["attach"]``.
        name: The adapter's name in PEFT.

    Raises:
        ConfigError: the config is out of bounds, or the model carries an adapter already.
        TargetError: a target is not in the model, or cannot carry the method.
    """
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError("the model carries an adapter already; peftkit.detach(model) takes it off")
    keep_layout(model)
    resolved = methods.resolve(config, model)
    snapshot = _Snapshot(model, copy_weights=methods.changes_backbone(resolved))
    try:
        with quiet_peft():
            adapted = get_peft_model(model, resolved, adapter_name=name)
        _train_saved_modules_in_float32(adapted)
    except BaseException as problem:
        snapshot.restore()
        if isinstance(problem, Exception):  # whatever PEFT, or an initialisation in it, has raised
            what = f"{type(config).__name__} cannot be attached to {type(model).__name__}"
            raise TargetError(f"{what}: {problem}") from problem
        raise
    snapshot.keep_trained_values()
    vars(adapted)[_SNAPSHOT] = snapshot
    note(adapted, "attach", _describe(adapted, resolved))
    return adapted.train()


def _describe(model: PeftModel, config: PeftConfig) -> dict[str, Any]:
    layers = dict(model.get_base_model().named_modules())
    saved = [layer for layer, module in layers.items() if isinstance(module, ModulesToSaveWrapper)]
    if config.modules_to_save:
        config.modules_to_save = saved  # PEFT adds names of its own, present or not
    targets = config.target_modules
    return {
        "method": str(config.peft_type.value),
        "targets": targets if isinstance(targets, str) else sorted(targets or ()),
        "saved_modules": saved,
        "adapted_layers": sum(isinstance(module, BaseTunerLayer) for module in layers.values()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def detach(model: PeftModel) -> PreTrainedModel:
    """Take the adapter off and return the backbone, bit for bit as it was before `attach`.

    Raises:
        ConfigError: `model` was not made by `attach` or `load`, or its adapter is merged in place.
    """
    snapshot = vars(model).get(_SNAPSHOT)
    if snapshot is None:
        raise ConfigError(
            "peftkit did not attach an adapter to this model; an adapter of PEFT's own goes with model.unload()"
        )
    if any(isinstance(module, BaseTunerLayer) and getattr(module, "merged", False) for module in model.modules()):
        raise ConfigError(
            "the adapter is merged into the weights; call model.unmerge_adapter() before peftkit.detach(model)"
        )
    snapshot.restore()
    backbone: PreTrainedModel = snapshot.model
    return backbone


def save(model: PeftModel, directory: str | Path, *, name: str = "default") -> None:
    """Write the adapter as a PEFT directory, whole or not at all.

    The safetensors header carries a digest of the weights and the backbone's fingerprint, which `load` checks and others
    ignore. Other files in the directory stay.

    Raises:
        ConfigError: `model` has no adapter of that name.
        NonFiniteError: a weight is NaN or infinite. Nothing is written.
    """
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        raise ConfigError(f"{type(model).__name__} has no adapter {name!r} to save; attach returns a model that has")
    tensors = _adapter_tensors(model, name)
    if not tensors:
        raise ConfigError(f"the adapter {name!r} has no weights to save")
    backbone = model.get_base_model()
    about = fingerprint.as_metadata(fingerprint.of(backbone), model_quantization(backbone))
    with staged_directory(Path(directory)) as stage:
        write_json(stage / CONFIG_NAME, _config_fields(model, name))
        write_tensors(stage / WEIGHTS_NAME, tensors, {"peftkit": about})


def load(
    backbone: PreTrainedModel,
    directory: str | Path,
    *,
    trainable: bool = False,
    verify_backbone: bool = True,
    name: str = "default",
) -> PeftModel:
    """Attach the adapter of a PEFT directory to a backbone: checked first, then all or nothing.

    Args:
        backbone: The model it was trained on, in any precision.
        directory: What `save`, or PEFT's ``save_pretrained``, wrote.
        trainable: True to train on; False for inference.
        verify_backbone: False loads an adapter on another backbone of the same shapes.
        name: The adapter's name in PEFT.

    Raises:
        AdapterFileError: the directory is incomplete or damaged, or its weights are not those its config declares.
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
    config.inference_mode = not trainable
    adapted = attach(backbone, config, name=name)
    try:
        _check_shapes(shapes, {key: tuple(value.shape) for key, value in _adapter_tensors(adapted, name).items()}, path)
        set_peft_model_state_dict(adapted, tensors, adapter_name=name)
    except BaseException:
        detach(adapted)
        raise
    return adapted.train(trainable)


class _Snapshot:
    """A model as it was: every module's attributes, and the tensor behind every parameter.

    Costs no copy of a weight, unless `copy_weights` says that attaching writes into them.
    """

    def __init__(self, model: PreTrainedModel, *, copy_weights: bool) -> None:
        self.model = model
        self._attributes = [(module, self._copied(vars(module))) for module in model.modules()]
        self._parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
        self._values: list[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._values += [(p, p.data.clone()) for p in model.parameters()] if copy_weights else []

    @staticmethod
    def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
        return {key: copy.copy(value) if isinstance(value, dict | set) else value for key, value in attributes.items()}

    def keep_trained_values(self) -> None:
        """Copy the parameters of the backbone that will be trained in place (biases, with ``bias="all"``)."""
        self._values += [(p, p.data.clone()) for p, _, _ in self._parameters if p.requires_grad]

    def restore(self) -> None:
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(self._copied(attributes))
        for parameter, data, requires_grad in self._parameters:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        with torch.no_grad():
            for parameter, value in self._values:
                parameter.copy_(value)


def _train_saved_modules_in_float32(model: PeftModel) -> None:
    """Hold the trained copies of whole modules in float32, and their inputs and outputs in the dtype that surrounds them."""

    def cast_up(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            dtype = next(wrapper.original_module.parameters()).dtype
            if dtype in (torch.bfloat16, torch.float16):

                def cast_back(module: nn.Module, inputs: Any, output: Any, dtype: torch.dtype = dtype) -> Any:
                    return output.to(dtype) if isinstance(output, Tensor) else output

                for trained in wrapper.modules_to_save.values():
                    trained.float()
                    trained.register_forward_pre_hook(cast_up)
                    trained.register_forward_hook(cast_back)


def _adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return tensors


def _config_fields(model: PeftModel, name: str) -> dict[str, Any]:
    """Return the config as PEFT writes it, in a stable order."""
    config = copy.deepcopy(model.peft_config[name])
    config.inference_mode = True
    backbone = model.get_base_model()
    if config.task_type is None:
        config.auto_mapping = {"base_model_class": type(backbone).__name__, "parent_library": type(backbone).__module__}
    fields = {"peft_version": peft.__version__, **config.to_dict()}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}


def _read_config(path: Path) -> PeftConfig:
    """Read and check ``adapter_config.json``; a path is never looked up on the Hub."""
    file = path / CONFIG_NAME
    if not file.is_file():
        raise AdapterFileError(f"{file} is missing; an adapter directory holds {CONFIG_NAME} and {WEIGHTS_NAME}")
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
    ranks = [config.r, *config.rank_pattern.values()] if isinstance(config, LoraConfig) else []
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    if any(isinstance(rank, int) and rank > largest for rank in ranks) and shapes:
        raise AdapterFileError(
            f"{path}: r is {max(ranks)}, but no weight in {WEIGHTS_NAME} has a side longer than {largest}"
        )


def _check_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], path: Path) -> None:
    problems = [f"{key} is missing" for key in sorted(expected.keys() - found.keys())]
    problems += [f"{key} is not part of this adapter" for key in sorted(found.keys() - expected.keys())]
    problems += [
        f"{key} has shape {found[key]}, the config and the backbone ask for {expected[key]}"
        for key in sorted(found.keys() & expected.keys())
        if found[key] != expected[key]
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise AdapterFileError(f"{path / WEIGHTS_NAME} does not fit: {'; '.join(problems[:3])}{more}")


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence what PEFT warns of and no user can do anything about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
