"""attach, detach, save, load: all or nothing."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import peft
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from peftkit import fingerprint, methods
from peftkit.errors import AdapterFileError, ConfigError, PeftkitError, TargetError, nearest
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
from peftkit.lean import Lean, make_layers_lean, prepare
from peftkit.methods.registration import garbage_stays, quiet_peft
from peftkit.methods.settling import settle
from peftkit.quantization import keep_layout, model_quantization
from peftkit.recording import note
from peftkit.snapshot import Snapshot

_SNAPSHOT = "_peftkit_snapshot"


def attach(
    model: PreTrainedModel | PeftModel, config: PeftConfig, *, name: str = "default", lean: Lean | bool = True
) -> PeftModel:
    """Attach an adapter to a transformers model, all or nothing, and return the model ready to train.

    Targets that the config leaves open are resolved from the model's structure. The adapter's parameters are float32; the
    backbone is frozen and keeps its dtypes. When attaching fails, the model is as it was.

    A model that has adapters gets one more. If it is of another method, it joins the active ones (LoRA and a prefix at
    once); if one of its method is active, it takes that one's place, and ``model.set_adapter(name)`` switches back.

    Args:
        model: The backbone; float, 8-bit or 4-bit; or what `attach` has returned. It is changed in place, and `detach`
            undoes that. Move it to its device first.
        config: ``LoraConfig``, ``AdaLoraConfig``, ``BottleneckConfig`` or ``PrefixConfig``. It is not changed; what was
            resolved stands in ``record(model)["attach"]``.
        name: The adapter's name in PEFT.
        lean: What to make lean of the training step: all, nothing, or as a `Lean` says; see ``record(model)["lean"]``.

    Raises:
        ConfigError: the config is out of bounds, the name is taken, or the model carries an adapter of somebody else's.
        TargetError: a target is not in the model, or cannot carry the method.
    """
    return _attach(model, config, name, lean)[0]


@garbage_stays()
def _attach(model: Any, config: PeftConfig, name: str, lean: Lean | bool) -> tuple[PeftModel, Snapshot]:
    """Attach, and return the model with its state before, to which a caller can go back."""
    first: Snapshot | None = vars(model).get(_SNAPSHOT)
    if first is None and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "the model carries an adapter already; to add one, pass what peftkit.attach has returned; to start over, "
            "peftkit.detach that (or model.unload() an adapter of PEFT's own)"
        )
    if first is not None and name in model.peft_config:
        raise ConfigError(f"the model has an adapter {name!r} already; attach under another name, or detach first")
    keep_layout(model)
    with first.lifted() if first else contextlib.nullcontext():
        bare = first.model if first else model
        resolved = methods.resolve(config, bare)
        left_alone = methods.left_alone(resolved, bare)
    if first and config.modules_to_save is None and _trains_head(model, besides=config.peft_type):
        resolved.modules_to_save = []
    if first and methods.changes_backbone(resolved):
        raise ConfigError(
            f"init_lora_weights={config.init_lora_weights!r} writes to the backbone's weights, on which another adapter of the "
            "model stands; attach it first, or alone"
        )
    before = Snapshot(model, copy_weights=methods.changes_backbone(resolved))
    try:
        if first is None:
            prepare(bare, lean)
        with quiet_peft(), methods.injection(resolved):
            adapted = methods.join(model, resolved, name) if first else _wrapped(model, resolved, name)
        settle(adapted, name)
        make_layers_lean(adapted, lean)
    except BaseException as problem:
        before.restore()
        if isinstance(problem, Exception) and not isinstance(problem, PeftkitError):  # whatever PEFT has raised
            what = f"{type(config).__name__} cannot be attached to {type(bare).__name__}"
            raise TargetError(f"{what}: {problem}") from problem
        raise
    before.keep_trained_values()
    vars(adapted).setdefault(_SNAPSHOT, before)
    described = _describe(adapted, resolved, name) | {"left_alone": left_alone}
    note(adapted, "attach" if first is None else f"attach {name}", described)
    return adapted.train(any(parameter.requires_grad for parameter in adapted.parameters())), before


def _wrapped(model: PreTrainedModel, config: PeftConfig, name: str) -> PeftModel:
    """Return PEFT's model for a backbone; its classes for classification would train a head where none is asked for."""
    if config.modules_to_save == []:
        return PeftModel(model, config, adapter_name=name)
    return get_peft_model(model, config, adapter_name=name)


def _trains_head(model: PeftModel, *, besides: str) -> bool:
    """Tell whether an active adapter of another method trains modules whole: one that joins it leaves them to it."""
    active = [model.peft_config[name] for name in model.active_adapters]
    return any(config.modules_to_save for config in active if config.peft_type != besides)


def _describe(model: PeftModel, config: PeftConfig, name: str) -> dict[str, Any]:
    layers = dict(model.get_base_model().named_modules())
    saved = [
        layer
        for layer, module in layers.items()
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save
    ]
    if config.modules_to_save:
        config.modules_to_save = saved  # PEFT adds names of its own, present or not
    targets = config.target_modules
    return {
        "method": str(config.peft_type.value),
        "targets": targets if isinstance(targets, str) else sorted(targets or ()),
        "saved_modules": saved,
        "adapted_layers": sum(
            isinstance(module, BaseTunerLayer) and name in module._get_available_adapters()
            for module in layers.values()
        ),
        "trained_parameters": sum(
            p.numel() for key, p in model.named_parameters() if p.requires_grad and f".{name}" in key
        ),
    }


def detach(model: PeftModel) -> PreTrainedModel:
    """Take the adapter off and return the backbone, bit for bit as it was before `attach`.

    Raises:
        ConfigError: `model` was not made by `attach` or `load`, or its adapter is merged in place.
    """
    snapshot: Snapshot | None = vars(model).get(_SNAPSHOT)
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
        backbone: The model it was trained on, in any precision; or that model with adapters, which gets one more.
        directory: What `save`, or PEFT's ``save_pretrained``, wrote.
        trainable: True to train on; False for inference.
        verify_backbone: False loads an adapter on another backbone of the same shapes.
        name: The adapter's name in PEFT.
        lean: See `attach`.

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
    config, tensors = methods.converted(config, tensors, backbone)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    config.inference_mode = not trainable
    if getattr(config, "modules_to_save", []) is None:
        config.modules_to_save = []  # nothing in the file is trained whole
    adapted, before = _attach(backbone, config, name, lean)
    try:
        check_shapes(shapes, {key: tuple(value.shape) for key, value in adapter_tensors(adapted, name).items()}, path)
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
        tensors: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return tensors


def _config_fields(backbone: PreTrainedModel, config: PeftConfig) -> dict[str, Any]:
    """Return the config as PEFT writes it, in a stable order."""
    config = copy.deepcopy(config)
    config.inference_mode = True
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
    ranks = [config.r, *config.rank_pattern.values()] if config.peft_type == "LORA" else []
    ranks += [config.init_r] if config.peft_type == "ADALORA" else []
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    lengths = [getattr(config, key) for key in ("num_virtual_tokens", "encoder_hidden_size") if hasattr(config, key)]
    if config.peft_type == "PREFIX" and max(lengths[: 1 + config.prefix_projection]) > largest and shapes:
        raise AdapterFileError(
            f"{path}: the prefix has a side of {max(lengths)}, but no weight in {WEIGHTS_NAME} one longer than {largest}"
        )
    if any(isinstance(rank, int) and rank > largest for rank in ranks) and shapes:
        raise AdapterFileError(
            f"{path}: r is {max(ranks)}, but no weight in {WEIGHTS_NAME} has a side longer than {largest}"
        )
