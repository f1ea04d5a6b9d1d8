"""Replaced forward passes: wrappers around a module's own, each with a name.

PyTorch calls ``module.forward``, and an attribute of that name on the module comes before the
method of its class. This file is the only one that sets it. Wrappers stack: each gets the module
and the forward pass below it, which may be another wrapper, what somebody else (Accelerate) has put
there, or the class's own. They come off by name, in any order.

A wrapper is called with its module, and finds there whatever else it needs. So a deep copy of a
model has wrappers around its own modules, and a block may run twice under gradient checkpointing.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from peftkit.errors import PeftkitError

Wrapper = Callable[..., Any]
"""Called as ``wrapper(module, forward, *args, **kwargs)``; `forward` is the pass below it."""


@dataclass(frozen=True, eq=False)
class WrappedForward:
    """A module's ``forward`` attribute: one wrapper, and what it wraps.

    Nothing in it changes once it is made, so that a saved copy of a module's attributes holds.
    """

    module: nn.Module
    name: str
    wrapper: Wrapper
    inner: Callable[..., Any] | None
    """The attribute that was there before; None for the method of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapper around the forward pass below."""
        return self.wrapper(self.module, self.below(), *args, **kwargs)

    def below(self) -> Callable[..., Any]:
        """Return the forward pass that the wrapper gets."""
        if self.inner is not None:
            return self.inner
        return functools.partial(type(self.module).forward, self.module)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of what is wrapped: transformers looks for argument names in it."""
        return inspect.signature(self.below())


def wrap_forward(module: nn.Module, wrapper: Wrapper, name: str) -> None:
    """Put `wrapper` around a module's forward pass, outside of all that is there.

    Args:
        module: Gets an attribute ``forward``.
        wrapper: A function, or a ``functools.partial`` of one with plain values.
        name: By which the wrapper is found and taken off again; one that is there already stays
            the only one, where it is.
    """
    if not is_wrapped(module, name):
        inner = vars(module).get("forward")
        vars(module)["forward"] = WrappedForward(module, name, wrapper, inner)


def unwrap_forward(module: nn.Module, name: str) -> None:
    """Take the wrapper called `name` off a module's forward pass; the others stay as they are.

    Raises:
        PeftkitError: there is none of that name, or somebody else has replaced the forward pass
            since.
    """
    rest = _without(vars(module).get("forward"), module, name)
    if rest is None:
        del vars(module)["forward"]
    else:
        vars(module)["forward"] = rest


def is_wrapped(module: nn.Module, name: str) -> bool:
    """Return whether a module's forward pass has a wrapper called `name`."""
    forward = vars(module).get("forward")
    while isinstance(forward, WrappedForward):
        if forward.name == name:
            return True
        forward = forward.inner
    return False


def has_foreign_forward(module: nn.Module) -> bool:
    """Return whether somebody else than peftkit has replaced a module's forward pass."""
    forward = vars(module).get("forward")
    while isinstance(forward, WrappedForward):
        forward = forward.inner
    return forward is not None


def _without(forward: Any, module: nn.Module, name: str) -> Callable[..., Any] | None:
    """Return a stack of wrappers without the one called `name`; None where nothing is left."""
    if not isinstance(forward, WrappedForward):
        raise PeftkitError(
            f"{type(module).__name__} has no wrapper {name!r} that can be taken off its forward "
            "pass; undo what else has replaced it first"
        )
    if forward.name == name:
        return forward.inner
    return replace(forward, inner=_without(forward.inner, module, name))
