"""Attach an adapter to a model and take it off again: all or nothing."""

import contextlib
from collections import Counter
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedModel

from peftkit.adapters.snapshot import Snapshot
from peftkit.backbones.cpu_weight_repacking import prevent_cpu_repacking
from peftkit.errors import ConfigError, PeftkitError, TargetError
from peftkit.lean import Lean, prepare
from peftkit.methods.after_injection import settle
from peftkit.methods.method import Arithmetic, Method, method_of, methods_on
from peftkit.methods.peft_registry import garbage_stays, injecting, quiet_peft
from peftkit.recording import extend, note

_SNAPSHOT = "_peftkit_snapshot"
_TRAINS_A_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # tasks, as PEFT calls them


def attach(
    model: PreTrainedModel | PeftModel,
    config: PeftConfig,
    *,
    name: str = "default",
    lean: Lean | bool = True,
) -> PeftModel:
    """Attach an adapter to a transformers model and return the model ready to train.

    Targets that the config leaves open are found from the model's structure. The adapter's
    parameters are float32. The backbone is frozen and keeps its dtypes. If attaching fails, the
    model is as it was.

    A model that has adapters gets one more. If it is of another method, it joins the active ones
    (LoRA and a prefix at once); if one of its method is active, it takes that one's place, and
    ``model.set_adapter(name)`` switches back.

    Args:
        model: The backbone; float, 8-bit or 4-bit; or what `attach` has returned. It is changed in
            place, and `detach` undoes that. Move it to its device first.
        config: A method's config, such as ``LoraConfig`` or ``PrefixConfig``. It is not changed;
            what was resolved is in ``record(model)["attach"]``.
        name: The adapter's name in PEFT.
        lean: What to make lean of the training step: all, nothing, or as a `Lean` says; see
            ``record(model)["lean"]``.

    Raises:
        ConfigError: the config is out of bounds, the name is taken, or the model carries an adapter
            that someone else attached.
        TargetError: a target is not in the model, or cannot carry the method.
    """
    return attach_reversibly(model, config, name, lean)[0]


@garbage_stays()
def attach_reversibly(
    model: Any, config: PeftConfig, name: str, lean: Lean | bool
) -> tuple[PeftModel, Snapshot]:
    """Attach, and return the model with a snapshot of it before, to which a caller can go back."""
    first: Snapshot | None = vars(model).get(_SNAPSHOT)
    _check_name_is_free(model, first, name)
    prevent_cpu_repacking(model)
    method = method_of(config)
    with first.lifted() if first else contextlib.nullcontext():
        bare = first.model if first else model
        resolved = method.resolve(config, bare)
        left_alone = method.left_alone(resolved, bare)
    if first and config.modules_to_save is None and _trains_head(model, besides=config.peft_type):
        resolved.modules_to_save = []  # the head is the other adapter's
    writes = method.changes_backbone(resolved)
    if first and writes:
        raise ConfigError(
            f"init_lora_weights={config.init_lora_weights!r} writes to the backbone's weights, on "
            "which another adapter of the model stands; attach it first, or alone"
        )
    before = Snapshot(model, copy_weights=writes)
    try:
        if first is None:
            prepare(bare, lean)
        with quiet_peft(), injecting(method.peft_type, method.tuner_class):
            adapted = _joined(model, resolved, name) if first else _wrapped(model, resolved, name)
        settle(adapted, name)
        _make_layers_lean(adapted, Lean.of(lean))
    except PeftkitError:
        before.restore()
        raise
    except Exception as problem:  # whatever PEFT raises
        before.restore()
        what = f"{type(config).__name__} cannot be attached to {type(bare).__name__}"
        raise TargetError(f"{what}: {problem}") from problem
    except BaseException:
        before.restore()
        raise
    before.keep_trained_values()
    vars(adapted).setdefault(_SNAPSHOT, before)
    described = _describe(adapted, resolved, name) | {"left_alone": left_alone}
    note(adapted, "attach" if first is None else f"attach {name}", described)
    is_trained = any(parameter.requires_grad for parameter in adapted.parameters())
    return adapted.train(is_trained), before


def _check_name_is_free(model: Any, first: Snapshot | None, name: str) -> None:
    """Refuse a model with an adapter of PEFT's own, and a name that is taken."""
    if first is not None and name in model.peft_config:
        raise ConfigError(
            f"the model has an adapter {name!r} already; attach under another name, or detach first"
        )
    if first is None and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "the model carries an adapter already; to add one, pass what peftkit.attach returned; "
            "to start over, peftkit.detach that (or model.unload() an adapter of PEFT's own)"
        )


def _wrapped(model: PreTrainedModel, config: PeftConfig, name: str) -> PeftModel:
    """Return PEFT's model for a backbone, of the class for its task.

    PEFT's classes for classification train a head even where the config asks for none.
    """
    if config.modules_to_save == [] and config.task_type in _TRAINS_A_HEAD:
        return PeftModel(model, config, adapter_name=name)
    return get_peft_model(model, config, adapter_name=name)


def _joined(model: PeftModel, config: PeftConfig, name: str) -> PeftModel:
    """Inject one more adapter into a model that has some.

    It joins the active adapters of other methods and takes the place of those of its own. The first
    adapter's tuner stays the model's, and from then on switches the layers of all methods.

    Raises:
        ConfigError: the layers of two methods would wrap each other.
    """
    method = method_of(config)
    _check_room(method, methods_on(model))
    tuner, backbone = model.base_model, model.get_base_model()
    kept = []
    for other in model.active_adapters:
        if model.peft_config[other].peft_type != config.peft_type:
            kept.append(other)
    del backbone.peft_config  # all tuners share it, and PEFT takes that for a sign of trouble
    method.tuner_class(backbone, {name: config}, name)
    cast_adapter_dtype(backbone, name)  # to float32, as PEFT does for a first adapter
    model.peft_config[name] = config
    backbone.peft_config = model.peft_config
    tuner.tuner_layer_cls = BaseTunerLayer
    active = [*kept, name]
    tuner.set_adapter(active)
    for other, other_config in model.peft_config.items():
        is_trained = other in active and not other_config.inference_mode
        tuner.set_requires_grad(other, requires_grad=is_trained)
    model.active_adapter = name
    return model


def _check_room(method: Method, others: list[Method]) -> None:
    for other in others:
        if other is not method and other.wraps_layers and method.wraps_layers:
            raise ConfigError(
                f"{method.title} and {other.title} cannot be on one model, since both change the "
                "weights of its layers; detach first"
            )


def _make_layers_lean(model: PeftModel, lean: Lean) -> None:
    """Make the layers of all methods lean, and note those that take PEFT's path, by reason."""
    arithmetic: Arithmetic = "lean"
    if not lean.layers:
        arithmetic = "peft"
    elif lean.exact:
        arithmetic = "exact"
    reasons: Counter[str | None] = Counter()
    for method in methods_on(model):
        reasons |= method.make_lean(model, arithmetic)
    lean_layers = reasons.pop(None, 0)
    found = {"layers": lean_layers, "layers_of_peft": dict(reasons)}
    extend(model.get_base_model(), "lean", found)


def _trains_head(model: PeftModel, *, besides: str) -> bool:
    """Return whether an active adapter of another method trains modules whole.

    An adapter that joins it leaves these modules to it.
    """
    for name in model.active_adapters:
        config = model.peft_config[name]
        if config.peft_type != besides and config.modules_to_save:
            return True
    return False


def _describe(model: PeftModel, config: PeftConfig, name: str) -> dict[str, Any]:
    """Return what `record` tells of an adapter; also write the trained heads into its config."""
    saved: list[str] = []
    adapted_layers = 0
    for layer, module in model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            saved.append(layer)
        if isinstance(module, BaseTunerLayer) and name in module._get_available_adapters():
            adapted_layers += 1
    if config.modules_to_save:
        config.modules_to_save = saved  # PEFT adds names of its own, present or not
    trained = 0
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and f".{name}" in key:
            trained += parameter.numel()
    targets = config.target_modules
    return {
        "method": str(config.peft_type.value),
        "targets": targets if isinstance(targets, str) else sorted(targets or ()),
        "saved_modules": saved,
        "adapted_layers": adapted_layers,
        "trained_parameters": trained,
    }


def detach(model: PeftModel) -> PreTrainedModel:
    """Take the adapter off and return the backbone, bit for bit as it was before `attach`.

    Raises:
        ConfigError: `model` was not made by `attach` or `load`, or its adapter is merged in place.
    """
    snapshot: Snapshot | None = vars(model).get(_SNAPSHOT)
    if snapshot is None:
        raise ConfigError(
            "peftkit did not attach an adapter to this model; an adapter of PEFT's own comes off "
            "with model.unload()"
        )
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and getattr(module, "merged", False):
            raise ConfigError(
                "the adapter is merged into the weights; call model.unmerge_adapter() before "
                "peftkit.detach(model)"
            )
    snapshot.restore()
    backbone: PreTrainedModel = snapshot.model
    return backbone
