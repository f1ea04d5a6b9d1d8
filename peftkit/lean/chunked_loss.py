"""A language model's own loss, with logits for only some tokens at a time.

The class of a model says how logits come from hidden states: a head, perhaps scaled, capped, or
behind a transform. None of this is repeated here. To take a chunk of tokens to their logits, the
model's forward pass is run again while its body stands still: the children that it calls before
the head return what they returned, with the chunk in the place of the hidden states. So a head
that is tied, biased, trained, or has LoRA on it, stays what it is.

Is the loss of the model the cross-entropy of those logits, and which token does a label belong to?
The first step finds out, by asking the model for the loss of six tokens. If it is another loss, the
model computes it as usual, and the record says so.
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
from peftkit.random_state import device_generator
from peftkit.recording import extend

_LOSS_ARGUMENTS = ("labels", "shift_labels", "num_items_in_batch")
_STATE = "_peftkit_chunked_loss"
_PROBE_TOKENS = 6

# How far the model's loss of the probe may be from ours, as a share of it.
# Labels shifted by one give another loss altogether.
_TOLERANCE = 1e-3
_TOLERANCE_16_BIT = 1e-2
# From the very same logits. What routers of experts add to a loss is a few ten thousandths.
_TOLERANCE_SAME_LOGITS = 1e-5


@dataclasses.dataclass(frozen=True)
class _Sum:
    """What `summed` was asked for."""

    shift: int | None
    weights: Tensor | None


_asked_for_sum: ContextVar[_Sum | None] = ContextVar("asked_for_sum", default=None)
"""Holds what `summed` was called with, while it lasts."""


def chunk_loss(model: nn.Module) -> None:
    """Let `model`, a transformers model, compute its loss in chunks when it is called to train.

    That is with ``labels``, in training mode, with gradients. It then returns ``loss`` and no
    ``logits``. Otherwise it does what it always did.
    """
    if _STATE in vars(model):
        return
    tail = _child_with_head(model)
    state = ChunkedLoss(model, tail, _inner_names(model, tail))
    vars(model)[_STATE] = state
    if tail is None:
        state.leave_to_model("its class calls no output embedding of its own")
    else:
        wrap_forward(model, _run_model, "chunked loss")


def has_chunked_loss(model: nn.Module) -> bool:
    """Return whether a model, or the one inside it, computes its loss in chunks.

    Before its first step, that is as far as is known then.
    """
    for part in model.modules():
        if _STATE in vars(part):
            state: ChunkedLoss = vars(part)[_STATE]
            return state.reason is None
    return False


@contextlib.contextmanager
def summed(*, shift: int | None = None, weights: Tensor | None = None) -> Iterator[None]:
    """Let models with a chunked loss return it as a sum over tokens while this lasts.

    They then do so in evaluation mode, too.

    Args:
        shift: How many tokens after a token its label stands; None leaves that to the model.
        weights: Of the loss of each label, [batch, tokens] as the labels; None is 1 for each. A
            model that returns ``logits`` has not used them.
    """
    token = _asked_for_sum.set(_Sum(shift, weights))
    try:
        yield
    finally:
        _asked_for_sum.reset(token)


def _run_model(model: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    state: ChunkedLoss = vars(model)[_STATE]
    is_training = model.training and torch.is_grad_enabled()
    wants_loss = is_training or _asked_for_sum.get() is not None
    if kwargs.get("labels") is None or not wants_loss or not state.can_serve(kwargs):
        return forward(*args, **kwargs)
    return state.run(forward, args, kwargs)


def _child_with_head(model: nn.Module) -> str | None:
    """Return the name of the model's child that is, or holds, its output embedding."""
    heads = {id(head) for head in output_modules(model)}
    for name, child in model.named_children():
        if heads & {id(part) for part in child.modules()}:
            return name
    return None


def _inner_names(model: nn.Module, tail: str | None) -> list[str]:
    """Return the names of the model's children but for the one with the head, then of theirs."""
    names, inner = [], []
    for name, child in model.named_children():
        if name != tail:
            names.append(name)
            inner += [f"{name}.{own}" for own, _ in child.named_children()]
    return names + inner


class _BodyDone(Exception):  # noqa: N818 -- it is no error
    """Raised where the body is done, instead of going on to the head."""


class ChunkedLoss:
    """How one model's loss is computed in chunks."""

    def __init__(self, model: nn.Module, tail: str | None, inner: list[str]) -> None:
        self.model = model
        self.tail = tail
        """Name of the child that is, or holds, the head."""
        self.inner = inner
        """Names of the modules that the model may call before it."""
        self.shift: int | None = None
        """How many tokens after a token its label stands; None until the model was asked."""
        self.reason: str | None = None
        """Why the model computes its loss as usual; None where it does not."""
        self._flags: dict[str, bool] = {}

    def leave_to_model(self, reason: str) -> None:
        """Let the model compute its loss as usual from now on, and record why."""
        self.reason = reason
        extend(self.model, "lean", {"loss": f"the model's own: {reason}"})

    def can_serve(self, kwargs: dict[str, Any]) -> bool:
        """Return whether a call asks for nothing but a loss."""
        if self.reason is not None or torch.compiler.is_compiling():
            return False
        if not hasattr(self.model, "peft_config"):  # PEFT has unloaded its adapter
            return False
        return kwargs.get("return_dict") is not False and not kwargs.get("logits_to_keep")

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the model's output with its loss, and without its logits."""
        flags = self._collect_flags(kwargs)
        must_ask = self.shift is None or flags != self._flags
        self._flags = flags
        random_states = _random_states(kwargs["labels"]) if must_ask else []
        head = self._run_body(forward, args, kwargs)
        if must_ask:
            try:
                self._find_shift(head, kwargs["labels"])
                if self.shift is None or self.reason is not None:
                    # The body has run already: the model goes on from there.
                    given = {key: kwargs[key] for key in _LOSS_ARGUMENTS if key in kwargs}
                    return head(head.hidden, **given)
            except Exception as problem:  # whatever a model does that runs its head by other means
                what = f"{type(problem).__name__}: {problem}"
                self.leave_to_model(f"its head cannot be run by itself ({what})")
                for generator, state in random_states:
                    generator.set_state(state)
                return forward(*args, **kwargs)
        return self._output_with_loss(head, kwargs)

    def _collect_flags(self, kwargs: dict[str, Any]) -> dict[str, bool]:
        """Return the settings that are true or false: any of them may add a term to the loss."""
        config: Any = self.model.config
        settings = {**vars(config), **vars(config.get_text_config()), **kwargs}
        return {key: value for key, value in settings.items() if isinstance(value, bool)}

    def _output_with_loss(self, head: "_Head", kwargs: dict[str, Any]) -> Any:
        asked = _asked_for_sum.get()
        shift = self.shift or 0
        if asked is not None and asked.shift is not None:
            shift = asked.shift
        targets = _targets(kwargs["labels"], shift, kwargs.get("shift_labels"))
        weights = None
        if asked is not None and asked.weights is not None:
            weights = _targets(asked.weights, shift)
        loss = self._sum_loss(head, head.hidden, targets, weights)
        if asked is None:
            items = kwargs.get("num_items_in_batch")
            loss = loss / ((targets != IGNORED).sum() if items is None else items)
        if head.rest is None:  # no label counts, so that the head has not run
            with torch.no_grad():
                head(head.hidden[:1, :1])
        return dataclasses.replace(head.rest, loss=loss)

    def _run_body(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "_Head":
        """Run the model up to its head, and return what follows."""
        outputs: dict[str, Any] = {}
        running: list[str] = []
        handles = [self._head_module().register_forward_pre_hook(_stop, prepend=True)]
        for name in self.inner:
            module = self.model.get_submodule(name)
            enter = functools.partial(_enter, running, name)
            leave = functools.partial(_leave, outputs, running, name)
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave))
        try:
            forward(*args, **kwargs)
        except _BodyDone:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return _Head(self.model, forward, args, kwargs, outputs)

    def _head_module(self) -> nn.Module:
        return self.model.get_submodule(str(self.tail))

    def _sum_loss(
        self, head: "_Head", hidden: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the summed cross-entropy of the tokens whose targets are not ignored.

        Args:
            head: What follows the body.
            hidden: [batch, tokens, width].
            targets: [batch, tokens].
            weights: Of each target, [batch, tokens]; None is 1 for each.
        """
        counted = (targets != IGNORED).flatten().nonzero().flatten()  # [n]
        rows = hidden.flatten(0, 1).index_select(0, counted)  # [n, width]
        trained = [p for p in self._head_module().parameters() if p.requires_grad]
        trained += [p for p in self.model.parameters(recurse=False) if p.requires_grad]
        if not len(counted):
            return hidden.sum() * 0.0

        def compute_logits(part: Tensor) -> Tensor:  # [rows, width] -> [rows, vocabulary]
            logits: Tensor = head(part.unsqueeze(0)).logits
            return logits.squeeze(0)

        chosen = None if weights is None else weights.flatten()[counted]  # [n]
        wanted = targets.flatten()[counted]  # [n]
        return summed_cross_entropy(rows, wanted, compute_logits, trained, chosen)

    @torch.no_grad()
    def _find_shift(self, head: "_Head", labels: Tensor) -> None:
        """Find out what the model's own loss is, from that of a few tokens of the first row.

        Sets `shift`, or leaves the loss to the model.
        """
        shape = tuple(head.hidden.shape)
        if shape[:-1] != labels.shape:
            self.leave_to_model(
                f"its head reads {shape}, which is not one row for each of "
                f"{tuple(labels.shape)} labels"
            )
            return
        if any(isinstance(part, nn.Dropout) and part.p for part in self._head_module().modules()):
            self.leave_to_model("its head drops out, with a mask for all tokens at once")
            return
        self.shift = None
        if shape[1] < _PROBE_TOKENS:
            return  # a longer text will tell
        fitting = self._fitting_shifts(head, head.hidden[:1, :_PROBE_TOKENS])
        if len(fitting) == 1:
            self.shift = fitting[0]
            extend(self.model, "lean", {"loss": "in chunks of tokens"})
        else:
            how = "in two ways" if fitting else "not"
            self.leave_to_model(f"it is {how} the cross-entropy of its logits")

    def _fitting_shifts(self, head: "_Head", probe: Tensor) -> list[int]:
        """Return the shifts of labels, 1 or 0, that give the model's own loss of a probe.

        Args:
            head: What follows the body.
            probe: Hidden states, [1, tokens, width].
        """
        log_probs = head(probe).logits.float().log_softmax(-1)  # [1, tokens, vocabulary]
        # Labels that are likely where they stand and unlikely one token before: the losses of the
        # two shifts are far apart, in 16 bits too.
        labels = (log_probs - log_probs.roll(1, 1)).argmax(-1)  # [1, tokens]
        labels[:, 2:3] = IGNORED
        own = head(probe, labels=labels)
        logits = own.logits.flatten(0, -2).to(own.loss.dtype)  # [tokens, vocabulary]
        expected = float(own.loss)
        tolerance = _TOLERANCE if own.logits.dtype == torch.float32 else _TOLERANCE_16_BIT
        fitting = []
        for shift in (1, 0):
            targets = _targets(labels, shift)
            same_logits = float(F.cross_entropy(logits, targets.flatten()))
            in_chunks = float(self._sum_loss(head, probe, targets) / (targets != IGNORED).sum())
            if not _is_close(same_logits, expected, _TOLERANCE_SAME_LOGITS):
                continue
            if _is_close(in_chunks, expected, tolerance):
                fitting.append(shift)
        return fitting


class _Head:
    """What a model does after its body: takes hidden states to the model's output."""

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: dict[str, Any],
    ) -> None:
        self._model = model
        self._forward = forward
        self._args = args
        self._kwargs = {key: kwargs[key] for key in kwargs if key not in _LOSS_ARGUMENTS}
        self._outputs = outputs  # of the modules that the model has called, by name, in order
        self.rest: Any = None
        """What it returned first, without loss and logits."""

    @property
    def hidden(self) -> Tensor:
        """The hidden states that the body returned, [batch, tokens, width]."""
        if not self._outputs:
            raise ValueError("it is called inside of the body")
        return first_tensor(list(self._outputs.values())[-1])

    def __call__(self, hidden: Tensor, **kwargs: Any) -> Any:
        """Return the model's output for other hidden states, [batch, tokens, width]."""
        outputs = list(self._outputs.values())
        outputs[-1] = with_first_tensor(outputs[-1], hidden)
        places: list[tuple[dict[str, Any], str, Any]] = []
        for name in self._outputs:
            parent, _, child = name.rpartition(".")
            siblings: dict[str, Any] = self._model.get_submodule(parent)._modules
            places.append((siblings, child, siblings[child]))
        for (siblings, child, module), output in zip(places, outputs, strict=True):
            siblings[child] = _StandIn(module, output)
        try:
            result = self._forward(*self._args, **self._kwargs, **kwargs)
        finally:
            for siblings, child, module in places:
                siblings[child] = module
        if self.rest is None:
            self.rest = dataclasses.replace(result, loss=None, logits=None)
        return result


class _StandIn:
    """Takes the place of a module: has its attributes, and returns what it returned."""

    def __init__(self, module: Any, output: Any) -> None:
        self._module, self._output = module, output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _stop(*_: Any) -> None:
    raise _BodyDone


def _enter(running: list[str], name: str, *_: Any) -> None:
    running.append(name)


def _leave(
    outputs: dict[str, Any], running: list[str], name: str, module: nn.Module, _: Any, output: Any
) -> None:
    """Remember what a module returned, if the model itself has called it, and no other module."""
    running.pop()
    if not running:
        outputs[name] = output


def _targets(labels: Tensor, shift: int, shifted: Tensor | None = None) -> Tensor:
    """Return the token that each token predicts, [batch, tokens]: the label `shift` places later.

    ``targets[:, i] = labels[:, i + shift]``, unless the caller has shifted them already.
    """
    if shifted is not None:
        return shifted
    return F.pad(labels, (0, shift), value=IGNORED)[:, shift:]


def _is_close(value: float, expected: float, tolerance: float) -> bool:
    return abs(value - expected) <= tolerance * abs(expected)


def _random_states(tensor: Tensor) -> list[tuple[torch.Generator, Tensor]]:
    """Return the generators that a model may draw from on this device, with their states."""
    generators = {torch.default_generator, device_generator(tensor.device)}
    return [(generator, generator.get_state()) for generator in generators]
