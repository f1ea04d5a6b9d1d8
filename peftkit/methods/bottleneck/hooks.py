"""Hooks through which bottleneck adapters read and write inside the backbone.

An adapter is a child of its host, the module whose output it changes. The backbone's modules keep
their place and their names. Every hook is a plain function that finds what it needs through the
module it is called with. So copies of a model have their own adapters, and gradient checkpointing
may run a block twice.

Some adapters need a tensor from elsewhere in the block. The module concerned remembers it until the
block has run: a source remembers its input, a norm its input and its output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.forwards import unwrap_forward, wrap_forward

CHILD = "bottlenecks"  # PEFT finds adapter parameters by "bottleneck_", which this must not match
_WRAPPER = "bottleneck"

# Attributes that the hooks set on the backbone's modules.
_INPUT = "_peftkit_input"  # a source: its input in this pass
_NORM_CALL = "_peftkit_norm_call"  # a norm: its input and output in this pass
_NORMS = "_peftkit_norms"  # a block: the names of its norms
_RECORDS = "_peftkit_records"  # a norm: remembers its calls while the block runs
_ALWAYS_RECORDS = "_peftkit_always_records"  # a norm: remembers every call

Branch = Callable[[Tensor], Tensor]


class NormCall(NamedTuple):
    """One call of a norm."""

    norm: nn.Module
    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class AdapterInput:
    """Where one adapter finds its input."""

    block: nn.Module
    source: nn.Module | None
    """The module whose input a parallel adapter reads; None where it reads its host's output."""
    closes_block: bool
    reads_residual: bool

    def read(self, output: Tensor) -> Tensor:
        """Return the adapter's input, given its host's output.

        Raises:
            PeftkitError: the source was not called in this pass.
        """
        if self.source is None:
            return output
        remembered: Tensor | None = vars(self.source).get(_INPUT)
        if remembered is None:
            source = type(self.source).__name__
            raise PeftkitError(f"{source} was not called before the layer that its adapter joins")
        if self.reads_residual:
            call = self.find_norm_call(remembered)
            if call is not None:
                return call.input
        return remembered

    def find_norm_call(self, tensor: Tensor) -> NormCall | None:
        """Return the call of a norm in the block that returned this very tensor, if any."""
        for norm in _recording_norms(self.block):
            call: NormCall | None = vars(norm).get(_NORM_CALL)
            if call is not None and call.output is tensor:
                return call
        return None

    def forget(self) -> None:
        """Release the tensors that were remembered for this adapter."""
        if self.source is None:
            return
        vars(self.source).pop(_INPUT, None)
        for norm in _recording_norms(self.block):
            vars(norm).pop(_NORM_CALL, None)


def prepare_input(
    block: nn.Module,
    *,
    source: nn.Module | None,
    norms: list[nn.Module],
    closes_block: bool,
    reads_residual: bool,
) -> AdapterInput:
    """Register the hooks that an adapter's input needs, each once, and return the input."""
    if source is not None and remember_input not in source._forward_pre_hooks.values():
        source.register_forward_pre_hook(remember_input, with_kwargs=True)
    reads_residual = reads_residual and source is not None
    if closes_block or reads_residual:
        names = {id(part): name for name, part in block.named_modules()}
        vars(block)[_NORMS] = tuple(names[id(norm)] for norm in norms)
        wrap_forward(block, _run_host_or_block, _WRAPPER)
        for norm in norms:
            if reads_residual:
                vars(norm)[_ALWAYS_RECORDS] = True
            if remember_norm_call not in norm._forward_hooks.values():
                norm.register_forward_hook(remember_norm_call)
    return AdapterInput(block, source, closes_block, reads_residual)


def add_to_host(host: nn.Module, layer: nn.Module) -> None:
    """Make `layer` a child of `host`, and let it change the output of the host's forward pass."""
    wrap_forward(host, _run_host_or_block, _WRAPPER)
    host.add_module(CHILD, layer)


def _run_host_or_block(
    module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run a host or a block, then release what was remembered for it.

    It is released even where gradient checkpointing stops the pass early, with an exception.
    """
    norms = _recording_norms(module)
    for norm in norms:
        vars(norm)[_RECORDS] = True
    try:
        output = forward(*args, **kwargs)
        layer = module._modules.get(CHILD)
        return output if layer is None else layer(output)
    finally:
        for norm in norms:
            vars(norm).pop(_RECORDS, None)
            vars(norm).pop(_NORM_CALL, None)
        inputs: dict[str, AdapterInput] = getattr(module._modules.get(CHILD), "inputs", {})
        for each in inputs.values():
            each.forget()


def _recording_norms(block: nn.Module) -> list[nn.Module]:
    """Return the norms of a block that remember their calls, and what PEFT has wrapped them in."""
    norms: list[nn.Module] = []
    for name in vars(block).get(_NORMS, ()):
        norms.extend(block.get_submodule(name).modules())
    return norms


def remember_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Remember the first tensor that `module` is called with."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    vars(module)[_INPUT] = tensors[0]


def remember_norm_call(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Remember what a norm has read and returned, where an adapter will ask for it.

    Gradient checkpointing computes the inside of a block once more, without the block itself, which
    would release the tensors. So a norm remembers nothing outside of a running block.
    """
    if vars(module).get(_RECORDS) or vars(module).get(_ALWAYS_RECORDS):
        vars(module)[_NORM_CALL] = NormCall(module, args[0], output)


def follow_wrappers(model: nn.Module) -> None:
    """Move adapters and hooks to the wrappers that PEFT has since put around their modules."""
    for part in list(model.modules()):
        if isinstance(part, ModulesToSaveWrapper):
            move_norm_hook(part, part.original_module, *part.modules_to_save.values())
    for part in list(model.modules()):
        if isinstance(part, BaseTunerLayer):
            move_adapters(part)


def move_adapters(wrapper: nn.Module) -> None:
    """Move adapters from a layer that PEFT has wrapped to the wrapper: they read LoRA's output."""
    base = wrapper._modules.get("base_layer")
    if base is None:
        return
    layer = base._modules.pop(CHILD, None)
    if layer is not None:
        unwrap_forward(base, _WRAPPER)
        add_to_host(wrapper, layer)


def move_norm_hook(wrapper: nn.Module, *inner: nn.Module) -> None:
    """Move the hook of a norm to the wrapper with which PEFT trains a copy of the norm.

    The wrapper's inputs and outputs have the dtype of the block; those of the copy are float32.
    """
    hooked = False
    always_records = False
    for part in inner:
        hooks = part._forward_hooks
        numbers = [number for number, hook in hooks.items() if hook is remember_norm_call]
        if not numbers:
            continue
        for number in numbers:
            del hooks[number]
        hooked = True
        always_records = always_records or bool(vars(part).get(_ALWAYS_RECORDS))
    if hooked and remember_norm_call not in wrapper._forward_hooks.values():
        wrapper.register_forward_hook(remember_norm_call)
        vars(wrapper)[_ALWAYS_RECORDS] = always_records


def find_closing_norm(output: Tensor, active: list[AdapterInput]) -> NormCall | None:
    """Return the call of the norm that ends a block, where adapters close it and a norm ends it.

    Raises:
        PeftkitError: reentrant checkpointing has cut the norm's input off the graph.
    """
    closing = [each for each in active if each.closes_block]
    if not closing:
        return None
    call = closing[0].find_norm_call(output)
    if call is not None and output.requires_grad and not call.input.requires_grad:
        raise PeftkitError(
            "placement='pfeiffer' on post-norm blocks gets no gradient through reentrant "
            "checkpointing; enable it with use_reentrant=False"
        )
    return call


def apply_to_features(branch: Branch, z: Tensor, width: int, *, channels_first: bool) -> Tensor:
    """Apply a branch to the features of z.

    These are its last dimension, or the second one where z comes from a convolution or is an image.

    Args:
        branch: A function of a tensor [..., width].
        z: [..., width] or [batch, width, ...].
        width: The number of features.
        channels_first: Which dimension it is where both have that width.
    """
    last = z.shape[-1] == width
    second = z.dim() > 2 and z.shape[1] == width
    if second and (channels_first or not last):
        features = z.movedim(1, -1).contiguous()  # [batch, width, ...] -> [batch, ..., width]
        return branch(features).movedim(-1, 1)
    if last:
        return branch(z)
    raise PeftkitError(
        f"an adapter of width {width} cannot read a tensor of shape {tuple(z.shape)}"
    )
