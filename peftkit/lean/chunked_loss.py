"""A language model's own loss, in chunks: what its forward pass does after its body, done for some
tokens at a time.

A model's class says how logits come from what its body gives: a head, perhaps scaled, capped, or
behind a transform. None of this is written down here again. To take a chunk of tokens through it,
the model's forward pass is run once more with its body standing still: the children that it calls
before the head give what they gave, with the chunk in the place of the hidden states. So a LoRA'd,
tied, biased or trained head is what it is.

Whether the model's loss is the cross-entropy of those logits, and which label is which token's, is
found out at the first step, by asking the model for the loss of six tokens. If it is another, the
model computes it as ever, and the record says so.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftkit.anatomy import first_tensor, output_modules, with_first_tensor
from peftkit.forwards import wrap_forward
from peftkit.labels import IGNORED
from peftkit.lean.cross_entropy import summed_cross_entropy
from peftkit.recording import extend

_ABOUT_LOSS = ("labels", "shift_labels", "num_items_in_batch")
_STATE = "_peftkit_chunked_loss"
_TOLERANCE = 1e-3  # of the loss; labels that are shifted by one give another loss altogether
_PRECISION = 1e-5  # of the loss, from the same logits; what routers of experts add to it is a few ten thousandths
_TOLERANCE_16_BIT = 1e-2
_PROBE = 6  # tokens

_asked_for_sum: ContextVar[tuple[int | None] | None] = ContextVar("asked_for_sum", default=None)


def chunk_loss(model: nn.Module) -> None:
    """Let `model`, a transformers model, compute its loss in chunks where it is called to train:
    with ``labels``, in training mode, with gradients. It then returns ``loss`` and no ``logits``.
    Otherwise it does what it always did.
    """
    if _STATE in vars(model):
        return
    tail = _child_with_head(model)
    state = ChunkedLoss(model, tail)
    vars(model)[_STATE] = state
    if tail is None:
        state.refuse("its class calls no output embedding of its own")
        return
    wrap_forward(model, _forward, "chunked loss")


def has_chunked_loss(model: nn.Module) -> bool:
    """Tell whether a model, or the one inside it, computes its loss in chunks, as far as is known
    before its first step.
    """
    state = next((vars(part)[_STATE] for part in model.modules() if _STATE in vars(part)), None)
    return state is not None and state.reason is None


@contextlib.contextmanager
def summed(*, shift: int | None = None) -> Iterator[None]:
    """Let models with a chunked loss return it as a sum over tokens, in evaluation mode too, for as
    long as this lasts.

    Args:
        shift: How many tokens later the label of a token stands; None is what the model itself
            makes of labels.
    """
    token = _asked_for_sum.set((shift,))
    try:
        yield
    finally:
        _asked_for_sum.reset(token)


def _forward(model: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    state: ChunkedLoss = vars(model)[_STATE]
    trains = model.training and torch.is_grad_enabled()
    if (
        kwargs.get("labels") is None
        or not (trains or _asked_for_sum.get() is not None)
        or not state.serves(kwargs)
    ):
        return own(*args, **kwargs)
    return state.output(own, args, kwargs)


class _Arrived(Exception):  # noqa: N818 -- it is no error
    """Raised where the body is done, instead of going on to the head."""


class ChunkedLoss:
    """How one model's loss is computed in chunks."""

    def __init__(self, model: nn.Module, tail: str | None) -> None:
        self.model, self.tail = model, tail
        children = [(name, child) for name, child in model.named_children() if name != tail]
        inner = [f"{name}.{own}" for name, child in children for own, _ in child.named_children()]
        self._inner = [*(name for name, _ in children), *inner]
        self.shift: int | None = None
        """How many tokens later the label of a token stands; None until the model was asked."""
        self._flags: dict[str, bool] = {}
        self.reason: str | None = None
        """Why the model computes its loss as ever."""

    def refuse(self, reason: str) -> None:
        """Leave the loss to the model."""
        self.reason = reason
        extend(self.model, "lean", {"loss": f"the model's own: {reason}"})

    def serves(self, kwargs: dict[str, Any]) -> bool:
        """Tell whether a call asks for nothing else than a loss."""
        plain = kwargs.get("return_dict") is not False and not kwargs.get("logits_to_keep")
        adapted = hasattr(self.model, "peft_config")  # not once PEFT has unloaded its adapter
        return self.reason is None and adapted and plain and not torch.compiler.is_compiling()

    def output(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the model's output with its loss, and without its logits."""
        settings: Any = self.model.config
        settings = {**vars(settings), **vars(settings.get_text_config()), **kwargs}
        flags = {
            key: value for key, value in settings.items() if isinstance(value, bool)
        }  # one may add to the loss
        unknown = self.shift is None or flags != self._flags
        self._flags = flags
        states = _random_states(kwargs["labels"]) if unknown else []
        tail = self._tail_after_body(own, args, kwargs)
        if unknown:
            try:
                self._ask(tail, kwargs["labels"])
                if (
                    self.shift is None or self.reason is not None
                ):  # the model goes on from where it is
                    return tail(
                        tail.hidden, **{key: kwargs[key] for key in _ABOUT_LOSS if key in kwargs}
                    )
            except Exception as problem:  # whatever a model does that runs its head by other means
                self.refuse(
                    f"its head cannot be run by itself ({type(problem).__name__}: {problem})"
                )
                for generator, state in states:
                    generator.set_state(state)
                return own(*args, **kwargs)
        asked = _asked_for_sum.get()
        shift = self.shift if asked is None or asked[0] is None else asked[0]
        targets = _targets(kwargs["labels"], shift or 0, kwargs.get("shift_labels"))
        loss = self._summed(tail, tail.hidden, targets)
        if asked is None:
            items = kwargs.get("num_items_in_batch")
            loss = loss / ((targets != IGNORED).sum() if items is None else items)
        if tail.rest is None:  # no label counts
            with torch.no_grad():
                tail(tail.hidden[:1, :1])
        return dataclasses.replace(tail.rest, loss=loss)

    def _tail_after_body(
        self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "_Tail":
        """Run the model up to its head, and return what follows."""
        given: dict[str, Any] = {}
        running: list[
            str
        ] = []  # only what the model itself calls stands still, and not what is inside of that
        handles = [self._head().register_forward_pre_hook(_arrive, prepend=True)]
        for name in self._inner:
            module = self.model.get_submodule(name)
            handles.append(
                module.register_forward_pre_hook(
                    lambda *_, name=name: running.append(name), prepend=True
                )
            )
            handles.append(
                module.register_forward_hook(functools.partial(_leave, given, running, name))
            )
        try:
            own(*args, **kwargs)
        except _Arrived:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return _Tail(self.model, own, args, kwargs, given)

    def _head(self) -> nn.Module:
        return self.model.get_submodule(str(self.tail))

    def _summed(self, tail: Callable[..., Any], hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss of hidden states (batch, tokens, width) whose targets (batch,
        tokens) are not ignored.
        """
        counted = (targets != IGNORED).flatten().nonzero().flatten()
        rows = hidden.flatten(0, 1).index_select(0, counted)
        trained = [p for p in self._head().parameters() if p.requires_grad]
        trained += [p for p in self.model.parameters(recurse=False) if p.requires_grad]
        if not len(counted):
            return hidden.sum() * 0.0

        def head(part: Tensor) -> Tensor:
            logits: Tensor = tail(part.unsqueeze(0)).logits
            return logits.squeeze(0)

        return summed_cross_entropy(rows, targets.flatten()[counted], head, trained)

    @torch.no_grad()
    def _ask(self, tail: "_Tail", labels: Tensor) -> None:
        """Find out what the model's own loss is, by that of a few tokens of the first row."""
        shape = tuple(tail.hidden.shape)
        if shape[:-1] != labels.shape:
            return self.refuse(
                f"its head reads {shape}, which is not one row for each of {tuple(labels.shape)} labels"
            )
        if any(isinstance(part, nn.Dropout) and part.p for part in self._head().modules()):
            return self.refuse("its head drops out, with a mask for all tokens at once")
        self.shift = None
        if shape[1] < _PROBE:
            return None  # a longer text will tell
        probe = tail.hidden[:1, :_PROBE]
        scores = tail(probe).logits.float().log_softmax(-1)
        # Likely where it stands and not one before, so that the losses of the two shifts are far
        # apart, in 16 bits too.
        asked = (scores - scores.roll(1, 1)).argmax(-1)
        asked[:, 2:3] = IGNORED
        own = tail(probe, labels=asked)
        logits, wanted = own.logits.flatten(0, -2).to(own.loss.dtype), float(own.loss)
        tolerance = _TOLERANCE if own.logits.dtype == torch.float32 else _TOLERANCE_16_BIT
        fitting = []
        for shift in (1, 0):
            targets = _targets(asked, shift)
            whole = float(F.cross_entropy(logits, targets.flatten()))
            mean = float(self._summed(tail, probe, targets) / (targets != IGNORED).sum())
            if abs(whole - wanted) <= _PRECISION * abs(wanted) and abs(
                mean - wanted
            ) <= tolerance * abs(wanted):
                fitting.append(shift)
        if len(fitting) != 1:
            return self.refuse(
                f"it is {'not' if not fitting else 'in two ways'} the cross-entropy of its logits"
            )
        self.shift = fitting[0]
        return extend(self.model, "lean", {"loss": "in chunks of tokens"})


class _Tail:
    """What a model does after its body: called with hidden states (batch, tokens, width), it
    returns the model's output.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: dict[str, Any],
    ) -> None:
        self._model, self._own, self._args, self._given = model, own, args, given
        self._kwargs = {key: value for key, value in kwargs.items() if key not in _ABOUT_LOSS}
        self.rest: Any = None
        """What it returned first, without loss and logits."""

    @property
    def hidden(self) -> Tensor:
        """Return the hidden states that the body gave, (batch, tokens, width)."""
        if not self._given:
            raise ValueError("it is called inside of the body")
        return first_tensor(list(self._given.values())[-1])

    def __call__(self, hidden: Tensor, **kwargs: Any) -> Any:
        last = list(self._given)[-1]
        places = [
            (self._model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], name)
            for name in self._given
        ]
        moved = [(parent, own, parent._modules[own]) for parent, own, _ in places]
        for parent, own, name in places:
            output = (
                with_first_tensor(self._given[name], hidden) if name == last else self._given[name]
            )
            parent._modules[own] = _StandIn(parent._modules[own], output)  # type: ignore[assignment]
        try:
            output = self._own(*self._args, **self._kwargs, **kwargs)
        finally:
            for parent, own, module in moved:
                parent._modules[own] = module
        if self.rest is None:
            self.rest = dataclasses.replace(output, loss=None, logits=None)
        return output


class _StandIn:
    """Stands in the place of a module, has what that has, and gives what it gave."""

    def __init__(self, module: Any, output: Any) -> None:
        self._module, self._output = module, output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _arrive(*_: Any) -> None:
    raise _Arrived


def _leave(
    given: dict[str, Any], running: list[str], name: str, module: nn.Module, args: Any, output: Any
) -> None:
    """Remember what a module gave that the model itself has called."""
    running.pop()
    if not running:
        given[name] = output


def _targets(labels: Tensor, shift: int, shifted: Tensor | None = None) -> Tensor:
    """Return the token that each token predicts, (batch, tokens): its label, or that of the token
    after it.
    """
    if shifted is not None:
        return shifted
    return F.pad(labels, (0, shift), value=IGNORED)[:, shift:]


def _random_states(tensor: Tensor) -> list[tuple[torch.Generator, Tensor]]:
    """Return the generators that a model may draw from on the tensor's device, with their states."""
    generators = [torch.default_generator]
    if tensor.device.type == "cuda":
        generators.append(torch.cuda.default_generators[tensor.device.index])
    return [(generator, generator.get_state()) for generator in generators]


def _child_with_head(model: nn.Module) -> str | None:
    heads = {id(head) for head in output_modules(model)}
    children = model.named_children()
    return next(
        (name for name, child in children if heads & {id(part) for part in child.modules()}), None
    )
