"""What a tuning method is, and the list of them.

The rest of the library asks a `Method`, and never which method it is. To add a method, write a
folder ``peftkit/methods/NAME`` and put NAME into `peftkit.methods.NAMES`. The folder has

- ``settings.py`` with a class ``Settings``: the keys of the section `adapter` in a recipe's YAML;
- ``method.py`` with an object ``METHOD``: a `Method` whose attributes and functions say the rest.

What a method leaves out, it does not do: the functions below do nothing, or refuse.
"""

import functools
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.optim import Optimizer

from peftkit.errors import ConfigError
from peftkit.methods import NAMES
from peftkit.methods.settings import AdapterSettings
from peftkit.methods.stored import StoredAdapter

Arithmetic = Literal["lean", "exact", "peft"]
"""How a layer computes its update: with less memory, so but rounded as PEFT rounds, or by PEFT."""


@dataclass(frozen=True)
class Variant:
    """One form of a method, as `peftkit inspect`, the contract tests and the benchmarks show it."""

    label: str
    """What `peftkit inspect` calls it."""
    shown: Callable[[], PeftConfig]
    """Makes the config that `peftkit inspect` shows: the method as papers use it."""
    small: Callable[[], PeftConfig]
    """Makes a config for a tiny model."""
    needs: str | None = None
    """What a model must have for it, in the words of the refusal; None where any model will do."""


class MethodTraining:
    """What a method does in each step of a training. This one does nothing; `Method` explains."""

    is_final = True
    """False while the adapter may still shrink, so that no evaluation counts as the best."""

    def before_step(self, *, finite: bool = True) -> None:
        """Change the gradients before the optimizer's step.

        Args:
            finite: False where a gradient is not finite, and a float16 step will be skipped.
        """

    def after_step(self, step: int) -> bool:
        """Change the adapter after step number `step`; return whether it has become final."""
        return False

    def finish(self) -> None:
        """Put the adapter into its last form after the training."""

    def logged(self, step: int) -> dict[str, Any] | None:
        """Return a line for ``metrics.jsonl`` about `step`, with its ``kind``; None for no line."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold besides the weights and the optimizer."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned, once the weights have been loaded."""


class Method:
    """All that the rest of the library asks of a tuning method."""

    name: ClassVar[str]
    """The folder's name, which is also the value of ``adapter.method``."""
    title: ClassVar[str]
    """What people call it."""
    peft_type: ClassVar[str]
    """PEFT's name for it, which is in every config file."""
    config_class: ClassVar[type[PeftConfig]]
    tuner_class: ClassVar[type[BaseTuner]]
    """What PEFT injects the adapter with."""
    settings: ClassVar[type[AdapterSettings]]
    """The section `adapter` of a recipe; also whether the method merges, packs and shards."""
    variants: ClassVar[Mapping[str, Variant]]
    """Its forms by name. A method with one form has one entry, under its own name."""

    starts_as_backbone: ClassVar[bool] = True
    """Whether a new adapter changes no output."""
    wraps_layers: ClassVar[bool] = False
    """Whether its layers take the place of the model's. A model has room for one such method."""
    takes_adapter_names: ClassVar[bool] = False
    """Whether each row of a batch can have an adapter of its own (PEFT's ``adapter_names``)."""
    converts_from: ClassVar[tuple[type[PeftConfig], ...]] = ()
    """Configs of other methods in PEFT whose files `convert` can read."""

    # Attaching

    def resolve(self, config: Any, model: nn.Module) -> Any:
        """Return a copy of `config` with targets, task type and trained heads for `model`.

        Raises:
            ConfigError: a value is out of bounds.
            TargetError: a target is not in the model, or the model has no place for the method.
        """
        raise NotImplementedError

    def left_alone(self, config: Any, model: nn.Module) -> dict[str, list[str]]:
        """Return the weights that one might think the method reaches, by the reason it does not."""
        return {}

    def changes_backbone(self, config: Any) -> bool:
        """Return whether attaching writes to the frozen weights."""
        return False

    def settle(self, model: PeftModel) -> None:
        """Finish a model with an adapter of this method, after PEFT has injected any adapter."""

    def make_lean(self, model: PeftModel, arithmetic: Arithmetic) -> Counter[str | None]:
        """Give the layers a cheap training step.

        Returns:
            How many layers take PEFT's path, by the reason; None stands for those that do not.
        """
        return Counter()

    # Files

    def sides(self, config: Any) -> dict[str, int]:
        """Return the fields that decide how large a weight is made.

        Each must be the side of some weight in the adapter's file, or it is refused before memory
        of that size is asked for.
        """
        return {}

    def convert(
        self, config: Any, tensors: dict[str, Tensor], model: nn.Module
    ) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return config and weights of this method for a file of one of `converts_from`.

        Raises:
            AdapterFileError: it means something else on this model.
        """
        raise NotImplementedError

    def simplify(self, model: nn.Module, name: str) -> None:
        """Compute once what an adapter computes anew in every step, for inference."""

    def fit_shapes(self, model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
        """Make room in `model` for weights of these shapes, by parameter name."""

    def as_lora(self, model: PeftModel, name: str) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return config and weights of the plain LoRA adapter that computes the same.

        Raises:
            ConfigError: there is none.
        """
        raise ConfigError(
            f"the {self.name} adapter {name!r} has no other form as plain LoRA; peftkit.save "
            "writes it as it is"
        )

    # New weights

    def check_mergeable(self, model: PeftModel, name: str) -> None:
        """Refuse an adapter that cannot be folded into the weights.

        Raises:
            ConfigError: says why.
        """
        if not self.settings.merges:
            raise ConfigError(
                f"the {self.name} adapter {name!r} cannot be merged, because it is no update of a "
                "weight; keep it beside the backbone"
            )

    def merged_layer(
        self, layer: BaseTunerLayer, base: nn.Module, config: Any, name: str
    ) -> nn.Module:
        """Fold an adapter into `base`, a float32 copy of the layer that `layer` wraps."""
        raise NotImplementedError

    def sum_of_updates(
        self, adapters: Sequence[StoredAdapter], weights: Sequence[float]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return config and weights of one adapter that does what a weighted sum of several does.

        Raises:
            ConfigError: their updates cannot be added up.
        """
        kind = adapters[0].config.get("peft_type")
        raise ConfigError(
            f"{adapters[0].path} is a {kind} adapter, whose update cannot be added up"
        )

    # Training

    def training(
        self, model: nn.Module, optimizer: Optimizer, total_steps: int, *, in_place: bool = True
    ) -> MethodTraining:
        """Return what the method does in each of `total_steps` steps.

        Args:
            model: What `attach` or `load` returned.
            optimizer: The optimizer of the adapter's parameters.
            total_steps: Optimizer steps of the whole training.
            in_place: False where parameters must keep their shapes, as under
                DistributedDataParallel.
        """
        return MethodTraining()


@functools.cache
def all_methods() -> tuple[Method, ...]:
    """Return the methods, in the order of `peftkit.methods.NAMES`.

    The first call makes them known to PEFT, too: a method's folder does so when it is imported.
    """
    modules = [importlib.import_module(f"peftkit.methods.{name}.method") for name in NAMES]
    return tuple(module.METHOD for module in modules)


def method_named(name: str) -> Method:
    """Return the method with this name, by which ``adapter.method`` knows it."""
    return all_methods()[NAMES.index(name)]


def method_of_type(peft_type: str) -> Method | None:
    """Return the method that PEFT calls `peft_type`; None if it is not one of peftkit's."""
    for method in all_methods():
        if method.peft_type == peft_type:
            return method
    return None


def method_of(config: PeftConfig) -> Method:
    """Return the method of a config.

    Raises:
        ConfigError: the config is of none of peftkit's methods.
    """
    method = method_of_type(str(getattr(config.peft_type, "value", config.peft_type)))
    if method is None:
        known = ", ".join(method.config_class.__name__ for method in all_methods())
        raise ConfigError(f"{type(config).__name__} is not one of peftkit's methods: {known}")
    return method


def methods_on(model: nn.Module) -> list[Method]:
    """Return peftkit's methods that have an adapter on `model`, each once."""
    configs: Iterable[PeftConfig] = getattr(model, "peft_config", {}).values()
    found: list[Method] = []
    for config in configs:
        method = method_of_type(str(getattr(config.peft_type, "value", config.peft_type)))
        if method is not None and method not in found:
            found.append(method)
    return found


def variants() -> dict[str, Variant]:
    """Return the forms of all methods, by name."""
    found: dict[str, Variant] = {}
    for method in all_methods():
        found |= method.variants
    return found


def method_training(
    model: nn.Module, optimizer: Optimizer, total_steps: int, *, in_place: bool = True
) -> MethodTraining:
    """Return what the methods on `model` do in each step: see `Method.training`."""
    for method in methods_on(model):
        part = method.training(model, optimizer, total_steps, in_place=in_place)
        if type(part) is not MethodTraining:
            return part
    return MethodTraining()
