"""Where a bottleneck adapter reads and writes, in modules of the backbone that keep their place and
their names.

The adapter is a child of the module whose output it changes, its host. All here are plain functions
that find what they need through the module they are called with, so that copies of a model have
adapters of their own, and gradient checkpointing may run a block twice. What one must tell a later
one is left on the module for that moment: a source leaves its input, a norm its input and output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.forwards import unwrap_forward, wrap_forward

CHILD = "bottlenecks"  # not to begin like the parameters, "bottleneck_", by which PEFT tells these
_WRAPPER = "bottleneck"
_INPUT = "_peftkit_input"
_NORMED = "_peftkit_normed"
_NORMS = "_peftkit_norms"
_LISTENS = "_peftkit_listens"
_LISTENS_ALWAYS = "_peftkit_listens_always"

Branch = Callable[[Tensor], Tensor]


def open_host(host: nn.Module, layer: nn.Module) -> None:
    """Make `layer` a child of `host`, and let it change what the host's forward gives, however that
    is called.
    """
    wrap_forward(host, _run, _WRAPPER)
    host.add_module(CHILD, layer)


def _run(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a host or a block; nothing that was left for it outlives that, not even when
    checkpointing stops it early.
    """
    norms = _norms(module)
    for norm in norms:
        vars(norm)[_LISTENS] = True
    try:
        output = forward(*args, **kwargs)
        layer = module._modules.get(CHILD)
        return output if layer is None else layer(output)
    finally:
        for norm in norms:
            vars(norm).pop(_LISTENS, None)
            vars(norm).pop(_NORMED, None)
        for tap in getattr(module._modules.get(CHILD), "taps", {}).values():
            tap.forget()


def _norms(block: nn.Module) -> list[nn.Module]:
    """Return the norms of a block that leave what they read, with what PEFT has put in their
    places.
    """
    return [
        part for name in vars(block).get(_NORMS, ()) for part in block.get_submodule(name).modules()
    ]


def follow_wrappers(model: nn.Module) -> None:
    """Move adapters and listeners to the wrappers that PEFT has put around their modules since."""
    for part in list(model.modules()):
        if isinstance(part, ModulesToSaveWrapper):
            listen_outside(part, part.original_module, *part.modules_to_save.values())
    for part in list(model.modules()):
        if isinstance(part, BaseTunerLayer):
            move_outside(part)


def move_outside(wrapper: nn.Module) -> None:
    """Move adapters from a layer that PEFT has wrapped since to the wrapper: they read what LoRA
    has changed.
    """
    base = wrapper._modules.get("base_layer")
    layer = base._modules.pop(CHILD, None) if base is not None else None
    if base is not None and layer is not None:
        unwrap_forward(base, _WRAPPER)
        open_host(wrapper, layer)


def leave_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Leave the first tensor that `module` is called with."""
    vars(module)[_INPUT] = next(
        value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
    )


def leave_normed(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Leave what a norm has read and what it has given, where somebody will take it.

    Checkpointing computes the inside of a block once more, in which there is no block to close.
    """
    if vars(module).get(_LISTENS) or vars(module).get(_LISTENS_ALWAYS):
        vars(module)[_NORMED] = Normed(module, args[0], output)


def listen_outside(wrapper: nn.Module, *inner: nn.Module) -> None:
    """Let what listens to norms that PEFT has wrapped, to train a copy, listen to the wrapper: its
    dtypes are the block's.
    """
    listening = [part for part in inner if leave_normed in part._forward_hooks.values()]
    for part in listening:
        for number in [
            number for number, hook in part._forward_hooks.items() if hook is leave_normed
        ]:
            del part._forward_hooks[number]
    if listening and leave_normed not in wrapper._forward_hooks.values():
        wrapper.register_forward_hook(leave_normed)
        vars(wrapper)[_LISTENS_ALWAYS] = any(vars(part).get(_LISTENS_ALWAYS) for part in listening)


class Normed(NamedTuple):
    """A norm, what it has read, and what it has given."""

    norm: nn.Module
    read: Tensor
    given: Tensor


@dataclass(frozen=True)
class Tap:
    """What one adapter listens to besides its host."""

    block: nn.Module
    source: nn.Module | None
    """The module whose input a parallel adapter reads; without one, the adapter reads its host's
    output.
    """
    closes_block: bool
    reads_residual: bool

    def read(self, output: Tensor) -> Tensor:
        """Return the adapter's input.

        Raises:
            PeftkitError: the source was not called in this pass.
        """
        if self.source is None:
            return output
        left: Tensor | None = vars(self.source).get(_INPUT)
        if left is None:
            raise PeftkitError(
                f"{type(self.source).__name__} was not called before the layer that its adapter joins"
            )
        normed = self.normed(left) if self.reads_residual else None
        return normed.read if normed else left

    def forget(self) -> None:
        """Let go of what was left for it."""
        if self.source is not None:
            vars(self.source).pop(_INPUT, None)
            for norm in _norms(self.block):
                vars(norm).pop(_NORMED, None)

    def normed(self, tensor: Tensor) -> "Normed | None":
        """Return what the block's norms have left of this very tensor, if it is the output of one
        of them.
        """
        left = (vars(norm).get(_NORMED) for norm in _norms(self.block))
        return next((normed for normed in left if normed and normed.given is tensor), None)


def open_tap(
    block: nn.Module,
    *,
    source: nn.Module | None,
    norms: list[nn.Module],
    closes_block: bool,
    reads_residual: bool,
) -> Tap:
    """Place the hooks that a tap needs, once each, and return the tap."""
    if source is not None and leave_input not in source._forward_pre_hooks.values():
        source.register_forward_pre_hook(leave_input, with_kwargs=True)
    reads_residual = reads_residual and source is not None
    if closes_block or reads_residual:
        names = {id(part): name for name, part in block.named_modules()}
        vars(block)[_NORMS] = tuple(names[id(norm)] for norm in norms)
        wrap_forward(block, _run, _WRAPPER)
        for norm in norms:
            if reads_residual:
                vars(norm)[_LISTENS_ALWAYS] = True
            if leave_normed not in norm._forward_hooks.values():
                norm.register_forward_hook(leave_normed)
    return Tap(block, source, closes_block, reads_residual)


def closing_norm(output: Tensor, active: list[Tap]) -> Normed | None:
    """Return the norm that gave a block its output, where adapters close the block and a norm did.

    Raises:
        PeftkitError: reentrant checkpointing has cut what the norm read off the graph.
    """
    closing = [tap for tap in active if tap.closes_block]
    normed = closing[0].normed(output) if closing else None
    if normed and output.requires_grad and not normed.read.requires_grad:
        raise PeftkitError(
            "placement='pfeiffer' on post-norm blocks gets no gradient through reentrant checkpointing; enable it with "
            "use_reentrant=False"
        )
    return normed


def on_features(branch: Branch, z: Tensor, width: int, *, channels_first: bool) -> Tensor:
    """Apply a branch to the features of z: its last dimension, or the second one of a convolution's
    or an image's.

    Where both dimensions have that width, `channels_first` decides.
    """
    last, second = z.shape[-1] == width, z.dim() > 2 and z.shape[1] == width
    if second and (channels_first or not last):
        return branch(z.movedim(1, -1).contiguous()).movedim(-1, 1)
    if last:
        return branch(z)
    raise PeftkitError(
        f"an adapter of width {width} cannot read a tensor of shape {tuple(z.shape)}"
    )
