"""What an adapter must do on one model: the same checks for peftkit and for plain PEFT."""

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

import peftkit
from benchmarks import zoo
from peftkit.errors import PeftkitError
from peftkit.methods.method import all_methods, method_training, variants

METHODS = tuple(variants())
METHOD_OF = {name: method for method in all_methods() for name in method.variants}
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order
_PEFT_TASKS = {
    "causal-lm": "CAUSAL_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}


def steps_for(method: str) -> int:
    """Return how many steps to train: as many as the method's schedule has, else three."""
    return int(getattr(variants()[method].small(), "total_step", 3))


def has_counterpart(method: str) -> bool:
    """Return whether PEFT has the method, too."""
    kind = METHOD_OF[method]
    return kind.config_class.__module__.startswith("peft.") or bool(kind.converts_from)


class Failed(Exception):  # noqa: N818 -- an outcome, not a mistake
    """A check that did not hold."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(f"{check}: {reason}")
        self.check, self.reason = check, reason


class Peftkit:
    """The checked operations, with peftkit."""

    @staticmethod
    def attach(specimen: zoo.Specimen, method: str) -> peft.PeftModel:
        """Attach with the method's plain config: nothing is named."""
        return peftkit.attach(specimen.model, variants()[method].small())

    @staticmethod
    def stepper(
        model: peft.PeftModel, optimizer: torch.optim.Optimizer, total_steps: int
    ) -> Callable[[int], None]:
        """Return what takes one optimiser step; for AdaLoRA it takes care of the budget too."""
        training = method_training(model, optimizer, total_steps)

        def step(number: int) -> None:
            training.before_step()
            optimizer.step()
            training.after_step(number)

        return step

    @staticmethod
    def save(model: peft.PeftModel, directory: str) -> None:
        """Write the adapter."""
        peftkit.save(model, directory)

    @staticmethod
    def load(backbone: nn.Module, directory: str) -> peft.PeftModel:
        """Attach what was written to another copy of the backbone."""
        return peftkit.load(backbone, directory)

    @staticmethod
    def merge(model: peft.PeftModel) -> nn.Module:
        """Return a plain model."""
        return peftkit.merge(model, dtype=torch.float32)

    @staticmethod
    def detach(model: peft.PeftModel) -> nn.Module:
        """Return the backbone."""
        return peftkit.detach(model)


class PlainPeft:
    """The checked operations as PEFT's documentation does them."""

    @staticmethod
    def attach(specimen: zoo.Specimen, method: str) -> peft.PeftModel:
        """Attach to all linear layers, with the task type that PEFT has for the task."""
        task = _PEFT_TASKS.get(
            specimen.task
        )  # none for images and speech, as in PEFT's own examples
        if task == "SEQ_2_SEQ_LM" and not specimen.config.is_encoder_decoder:
            task = "CAUSAL_LM"
        config = variants()[method].small()
        if isinstance(config, peftkit.PrefixConfig):
            task = task or ("SEQ_2_SEQ_LM" if specimen.task == "speech-seq2seq" else None)
            config = peft.PrefixTuningConfig(num_virtual_tokens=config.num_virtual_tokens)
        else:
            config.target_modules = "all-linear"
            if specimen.task == "image-classification":
                config.modules_to_save = ["classifier"]
        config.task_type = task
        return peft.get_peft_model(specimen.model, config)

    @staticmethod
    def stepper(
        model: peft.PeftModel, optimizer: torch.optim.Optimizer, total_steps: int
    ) -> Callable[[int], None]:
        """Return what takes one optimiser step; for AdaLoRA it takes care of the budget too."""
        allocate = getattr(model.base_model, "update_and_allocate", None)

        def step(number: int) -> None:
            optimizer.step()
            if allocate is not None:
                allocate(number)

        return step

    @staticmethod
    def save(model: peft.PeftModel, directory: str) -> None:
        """Write the adapter."""
        model.save_pretrained(directory)

    @staticmethod
    def load(backbone: nn.Module, directory: str) -> peft.PeftModel:
        """Attach what was written to another copy of the backbone."""
        return peft.PeftModel.from_pretrained(backbone, directory)

    @staticmethod
    def merge(model: peft.PeftModel) -> nn.Module:
        """Return the model with its weights changed; only a copy keeps the adapted one."""
        return copy.deepcopy(model).merge_and_unload()


LIBRARIES = {"peftkit": Peftkit, "peft": PlainPeft}


def examine(task: str, model_type: str, method: str, library: str) -> dict[str, Any]:
    """Run all checks; return the outcome, and the first check that failed with its reason."""
    try:
        specimen = zoo.build(task, model_type)
    except zoo.Unbuildable as problem:
        return {"outcome": "unbuildable", "reason": str(problem)}
    try:
        run_checks(LIBRARIES[library], specimen, method)
    except Failed as problem:
        outcome = "refused" if problem.check == "refused" else "failed"
        return {"outcome": outcome, "check": problem.check, "reason": problem.reason}
    return {"outcome": "ok"}


def run_checks(library: Any, specimen: zoo.Specimen, method: str) -> None:
    """Raise `Failed` at the first check that does not hold."""
    batch = specimen.batch(labels=True, padding="right")
    backbone = specimen.model
    with check("the bare model works"):
        before = outputs(backbone, batch)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    own = list(backbone.named_parameters())
    with check("attaches"):
        model = library.attach(specimen, method)
    if METHOD_OF[method].starts_as_backbone:
        with check("is the identity at the start"):
            expect_equal(outputs(model, batch), before)
    with check("trains the adapter and the head only"):
        _check_what_trains(model, own, specimen.task)
    with check("trains"):
        _train(library, model, specimen, steps_for(method))
    with check("evaluates with labels, changed by training"):
        after = outputs(model, batch)
        assert all(torch.isfinite(value).all() for value in after.values()), (
            "the output is not finite"
        )
        assert not torch.equal(after["logits"], before["logits"]), "training has changed nothing"
    with check("reloads bit for bit"), tempfile.TemporaryDirectory() as directory:
        library.save(model, directory)
        loaded = library.load(zoo.build(specimen.task, specimen.model_type).model, directory)
        expect_equal(outputs(loaded, batch), after)
    with check("disabled, is the backbone"), model.disable_adapter():
        expect_equal(outputs(model, batch), before)
    if METHOD_OF[method].settings.merges:
        with check("merges"):
            expect_close(outputs(library.merge(model), batch), after)
    if hasattr(library, "detach"):
        with check("detaches bit for bit"):
            restored = library.detach(model)
            found = restored.state_dict()
            changed = sorted(found.keys() ^ state.keys())
            changed += [
                name
                for name in found.keys() & state.keys()
                if not torch.equal(found[name], state[name])
            ]
            assert not changed, f"{len(changed)} weights differ: {changed[:3]}"
            expect_equal(outputs(restored, batch), before)


@contextlib.contextmanager
def check(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a failed check of that name.

    A refusal by attach stays a refusal.
    """
    try:
        yield
    except Exception as problem:
        text = " ".join(str(problem).split())
        if name == "attaches" and isinstance(problem, PeftkitError):
            raise Failed("refused", text[:400]) from problem
        kind = "" if isinstance(problem, AssertionError) else f"{type(problem).__name__}: "
        raise Failed(name, f"{kind}{text}"[:400]) from problem


def outputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the loss and the logits (or what comes first instead) of an evaluation pass."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(
            False
        )  # torch chooses other kernels by this flag, which round differently
    with torch.no_grad():
        result = model.eval()(**batch)
    for parameter in trained:
        parameter.requires_grad_(True)
    logits = next(
        value
        for value in (result.get("logits"), *result.to_tuple()[1:])
        if isinstance(value, Tensor)
    )
    return {"loss": result.loss.detach().clone(), "logits": logits.detach().clone()}


def expect_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that two models give the same logits bit for bit."""
    ours, value = found["logits"], expected["logits"]
    assert ours.shape == value.shape, (
        f"the logits have shape {tuple(ours.shape)}, not {tuple(value.shape)}"
    )
    if not torch.equal(ours, value):
        difference = float((ours - value).abs().max())
        raise AssertionError(
            f"the logits differ by {difference:.1e}, of {float(value.abs().max()):.1e} at most"
        )


def expect_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that two models' logits agree as far as float32 does."""
    ours, value = found["logits"], expected["logits"]
    difference, scale = float((ours - value).abs().max()), float(value.abs().max())
    assert difference <= TOLERANCE * max(scale, 1.0), (
        f"the logits differ by {difference:.1e}, of {scale:.1e} at most"
    )


def _check_what_trains(model: nn.Module, own: list[tuple[str, nn.Parameter]], task: str) -> None:
    freed = [name for name, parameter in own if parameter.requires_grad]
    assert not freed, f"{len(freed)} of the backbone's parameters train: {freed[:3]}"
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained, "nothing trains"
    if task.endswith("classification"):
        assert any("modules_to_save" in name for name in trained), (
            "the classification head, which is random, is frozen"
        )


def _train(library: Any, model: nn.Module, specimen: zoo.Specimen, steps: int) -> None:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    reached: set[str] = set()
    torch.manual_seed(0)
    take = library.stepper(model, optimizer, steps)
    for step in range(1, steps + 1):
        model.train()
        loss = model(**specimen.batch(labels=True, seed=step)).loss
        assert torch.isfinite(loss), f"the loss is {float(loss)} in step {step}"
        loss.backward()
        for name, parameter in trained.items():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), (
                    f"the gradient of {name} is not finite in step {step}"
                )
                reached.add(name)
        take(step)
        optimizer.zero_grad()
    missing = [name for name in trained if name not in reached]
    if missing:
        unused = _unused_modules(specimen)
        missing = [name for name in missing if not _host(name, unused)]
    assert not missing, (
        f"{len(missing)} of {len(trained)} trained parameters get no gradient: {missing[:3]}"
    )


def _unused_modules(specimen: zoo.Specimen) -> dict[str, bool]:
    """Return for each module of the bare model whether a training step gives it no gradient.

    The whole model is trained.
    """
    model = zoo.build(specimen.task, specimen.model_type).model.train()
    model(**specimen.batch(labels=True)).loss.backward()
    return {
        name: all(parameter.grad is None for parameter in module.parameters())
        for name, module in model.named_modules()
    }


def _host(name: str, unused: dict[str, bool]) -> bool:
    """Return whether the bare model does not use the module that an adapter's parameter is on."""
    path = [
        part for part in name.removeprefix("base_model.model.").split(".") if part != "base_layer"
    ]
    prefixes = (".".join(path[:end]) for end in range(len(path), 0, -1))
    return next((unused[prefix] for prefix in prefixes if prefix in unused), False)


def serve(connection: Connection) -> None:
    """Answer the questions that come over a connection, one at a time.

    This is what a worker process of ``coverage.py`` does.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    with contextlib.suppress(EOFError):  # whoever asked has gone
        while True:
            connection.send(examine(*connection.recv()))
