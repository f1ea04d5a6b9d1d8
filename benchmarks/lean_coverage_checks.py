"""On one model: are the numbers of the lean step those of the plain one, and which parts engage?"""

import contextlib
import functools
import logging
import unittest.mock
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import peftkit
from benchmarks import zoo
from benchmarks.coverage_checks import outputs
from peftkit.anatomy import is_norm
from peftkit.errors import PeftkitError
from peftkit.lean import Lean, norms_and_feed_forwards
from peftkit.memory.storages import LiveStorages
from peftkit.methods.lora import layer as linear

TOLERANCE = 1e-4  # of each gradient's norm, in float32
LOSS_FLOOR = 1e-3
"""In float64 the chunked loss computes in float32: a gradient that is zero but for rounding has
float32's then.
"""
TOLERANCE_16_BITS, FLOOR_16_BITS = 0.1, 0.1
EXACT = Lean(exact=True, loss=False)
"""What should give PEFT's bits: every part that computes the same in the same order."""


@dataclass
class Steps:
    """Two training steps of a model, each from the same weights."""

    losses: list[Tensor] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """Of an evaluation pass with labels, after the steps."""
    kept: int = 0
    """Bytes alive after the second step's forward pass, which its backward pass needs."""
    peak: int = 0
    """Bytes alive at most in the second step's forward pass."""
    engaged: dict[str, Any] = field(default_factory=dict)


def examine(task: str, model_type: str) -> dict[str, Any]:
    """Compare; return the outcome, what engaged, and how far the numbers differ."""
    take = functools.partial(take_steps, task, model_type)
    try:
        plain = take(lean=False)
    except zoo.Unbuildable as problem:
        return {"outcome": "unbuildable", "reason": _text(problem)}
    except Exception as problem:
        outcome = "refused" if isinstance(problem, PeftkitError) else "plain fails"
        return {"outcome": outcome, "reason": _text(problem)}
    found: dict[str, Any] = {"outcome": "ok", "bytes_plain": plain.kept, "peak_plain": plain.peak}
    _compare(found, "exact", plain, functools.partial(take, lean=EXACT))
    lean = _compare(found, "lean", plain, functools.partial(take, lean=True))
    if lean is not None:
        found |= {"bytes_lean": lean.kept, "peak_lean": lean.peak, **lean.engaged}
    model = zoo.build(task, model_type).model
    variants: list[dict[str, Any]] = []
    if model.supports_gradient_checkpointing:
        variants.append({"checkpointing": True})
    if any(_routes(module) for module in model.modules()):
        variants.append({"routers": True})
    for settings in variants:
        name = next(iter(settings))
        try:
            plain = take(lean=False, **settings)
        except Exception as problem:
            found[name] = f"plain fails: {_text(problem)}"
        else:
            _compare(found, name, plain, functools.partial(take, lean=True, **settings))
    _compare_in_16_bits(found, take)
    return found


def _routes(module: nn.Module) -> bool:
    """Return whether a module can add the losses of its routers of experts to its own."""
    return hasattr(getattr(module, "config", None), "output_router_logits")


def _compare_in_16_bits(found: dict[str, Any], take: Any) -> None:
    """Compare the exact mode in bfloat16.

    There, models convert what they read, and write over it, in other places.
    """
    take = functools.partial(take, dtype=torch.bfloat16)
    try:
        plain = take(lean=False)
    except Exception as problem:
        found["bfloat16"] = f"plain fails: {_text(problem)}"
        return
    try:
        lean = take(lean=True)
        found["loss_bfloat16"] = lean.engaged["loss"]
        found["bfloat16"] = difference = differences(take(lean=EXACT), plain, FLOOR_16_BITS)
        if difference["other"] or not difference["worst"] <= TOLERANCE_16_BITS:
            reason = (
                difference["other"] or f"{difference['where']} differs by {difference['worst']:.1e}"
            )
            _fail(found, "differs", f"bfloat16: {reason}")
        if not torch.allclose(
            torch.stack(lean.losses).float(), torch.stack(plain.losses).float(), rtol=0.02
        ):
            _fail(found, "differs", f"bfloat16: the losses are {lean.losses}, not {plain.losses}")
    except Exception as problem:
        _fail(found, "fails", f"bfloat16: {_text(problem)}")


def _compare(found: dict[str, Any], name: str, plain: Steps, take: Any) -> Steps | None:
    """Write into `found` how far the steps that `take` takes are from the plain ones."""
    try:
        steps = take()
        found[name] = difference = differences(steps, plain)
        worst = difference["worst"]
        if difference["other"] or not worst <= TOLERANCE:
            doubled = functools.partial(take, dtype=torch.float64)
            floor = 1e-30 if name == "exact" else LOSS_FLOOR
            difference["float64"] = differences(doubled(), doubled(lean=False), floor)
            worst = difference["float64"]["worst"]
        if difference["other"] or not worst <= TOLERANCE:
            reason = (
                difference["other"] or f"{difference['where']} differs by {difference['worst']:.1e}"
            )
            _fail(found, "differs", f"{name}: {reason}")
    except Exception as problem:
        _fail(found, "fails", f"{name}: {_text(problem)}")
        return None
    return steps


def _fail(found: dict[str, Any], outcome: str, reason: str) -> None:
    if found["outcome"] == "ok":
        found |= {"outcome": outcome, "reason": reason}


def differences(found: Steps, expected: Steps, floor: float = 1e-30) -> dict[str, Any]:
    """Return the largest relative difference of a loss or gradient, and what else differs.

    Args:
        found: Some steps.
        expected: The same steps, taken by other means.
        floor: A gradient smaller than this share of the step's largest one counts as large as that.
    """
    worst, where = 0.0, ""
    for step, (ours, theirs) in enumerate(zip(found.gradients, expected.gradients, strict=True)):
        least = floor * max(float(value.norm()) for value in theirs.values())
        pairs = {"the loss": (found.losses[step], expected.losses[step])}
        pairs |= {name: (ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
        for name, (value, reference) in pairs.items():
            distance = float((value - reference).norm())
            relative = distance / max(float(reference.norm()), least) if distance else 0.0
            if not relative <= worst:  # NaN too
                worst, where = relative, f"{name} in step {step + 1}"
    return {"worst": worst, "where": where, "other": next(_others(found, expected), "")}


def _others(found: Steps, expected: Steps) -> Iterator[str]:
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        yield from (f"only one {name} has a gradient" for name in ours.keys() ^ theirs.keys())
    for name, buffer in expected.buffers.items():
        if not torch.allclose(buffer, found.buffers[name], rtol=1e-4, atol=1e-6, equal_nan=True):
            yield f"the buffer {name} is another"
    precision = 1e-4 if expected.logits.dtype != torch.bfloat16 else 0.1
    if found.logits.shape != expected.logits.shape:
        yield "an evaluation gives no such logits"
    elif not torch.allclose(found.logits, expected.logits, rtol=precision, atol=precision / 10):
        yield "an evaluation gives other logits"


def _seed() -> int:
    return torch.manual_seed(3).initial_seed()


@unittest.mock.patch("torch.seed", _seed)  # Reformer asks the system for seeds
def take_steps(
    task: str,
    model_type: str,
    *,
    lean: Lean | bool,
    checkpointing: bool = False,
    routers: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Steps:
    """Build, attach LoRA that is not zero, and take two training steps."""
    specimen = zoo.build(task, model_type)
    torch.manual_seed(0)
    if dtype == torch.bfloat16:  # the adapter stays in float32
        specimen.model.to(dtype)
    model = peftkit.attach(specimen.model, peftkit.LoraConfig(r=4), lean=lean)
    if dtype == torch.float64:
        model.to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if routers and _routes(module):
            module.config.output_router_logits = True
    if checkpointing:
        specimen.model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    steps = Steps()
    batches = [
        _cast(specimen.batch(labels=True, seed=seed, padding=side), dtype)
        for seed, side in ((0, "right"), (1, "none"))
    ]
    with torch.no_grad():
        model.train()(**batches[0])  # a first pass may make modules, and draw numbers for them
    with _watched(model, steps):
        for number, batch in enumerate(batches):
            model.train()
            torch.manual_seed(number)
            counter = LiveStorages() if number else contextlib.nullcontext()
            with counter:
                loss = model(**batch).loss
                if isinstance(counter, LiveStorages):
                    steps.kept, steps.peak = counter.live, counter.peak
            assert torch.isfinite(loss), f"the loss is {float(loss)}"
            loss.backward()
            steps.losses.append(loss.detach().clone())
            steps.gradients.append(
                {name: p.grad.detach().clone() for name, p in trained.items() if p.grad is not None}
            )
            model.zero_grad()
    steps.buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(2)
    steps.logits = outputs(model, batches[0])["logits"]
    return steps


def _cast(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.to(dtype) if _is_real(value) else value for name, value in batch.items()}


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@contextlib.contextmanager
def _watched(model: nn.Module, steps: Steps) -> Iterator[None]:
    """Note what has really taken the lean path, of what is there."""
    norms, activations, feed_forwards, layers = set[int](), set[int](), set[int](), set[int]()
    elementwise: Any = norms_and_feed_forwards  # it does not export what it imports
    own_recomputed, own_update = elementwise.recomputed, linear.update_of

    def recomputed(function: Any, *inputs: Tensor, **more: Any) -> Tensor:
        if all(each.requires_grad for each in inputs):
            module = function.args[0]
            if function.func is elementwise._compute_between:
                feed_forwards.add(id(module))
            else:
                (norms if is_norm(module) else activations).add(id(module))
        return own_recomputed(function, *inputs, **more)

    def update_of(layer: LoraLayer, *args: Any, **more: Any) -> Any:
        layers.add(id(layer))
        return own_update(layer, *args, **more)

    elementwise.recomputed, linear.update_of = recomputed, update_of
    try:
        yield
    finally:
        elementwise.recomputed, linear.update_of = own_recomputed, own_update
    known = peftkit.record(model).get("lean", {})
    steps.engaged = {
        "layers": len(layers),
        "layers_of_all": sum(isinstance(module, LoraLayer) for module in model.modules()),
        "layers_of_peft": known.get("layers_of_peft", {}),
        "layers_missed": [
            name
            for name, module in model.named_modules()
            if id(module) not in layers
            and (isinstance(module, linear.LeanForward) and module.why_not() is None)
            and any(
                f"{name}.lora_A." in each for gradients in steps.gradients for each in gradients
            )
        ][:5],
        "norms": len(norms),
        "norms_of_all": sum(is_norm(module) for module in model.modules()),
        "feed_forwards": len(feed_forwards),
        "activations": len(activations),
        "loss": known.get("loss", ""),
    }


def _text(problem: Exception) -> str:
    kind = (
        ""
        if isinstance(problem, AssertionError | zoo.Unbuildable)
        else f"{type(problem).__name__}: "
    )
    return f"{kind}{' '.join(str(problem).split())}"[:400]


def serve(connection: Connection) -> None:
    """Answer the questions that come over a connection, one at a time."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    with contextlib.suppress(EOFError):  # whoever asked has gone
        while True:
            connection.send(examine(*connection.recv()))
