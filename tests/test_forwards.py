"""Wrappers around a module's forward pass: they stack, come off by name, and follow copies."""

import copy
import functools
import inspect
import io
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftkit.errors import PeftkitError
from peftkit.forwards import has_foreign_forward, is_wrapped, unwrap_forward, wrap_forward

X = torch.ones(1, 3)


class Scale(nn.Module):
    """Multiplies by its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x, *, twice=False):
        return x * self.weight * (2 if twice else 1)


def add_one(module, forward, *args, **kwargs):
    return forward(*args, **kwargs) + 1


def double(module, forward, *args, **kwargs):
    return 2 * forward(*args, **kwargs)


def subtract(amount, module, forward, *args, **kwargs):
    return forward(*args, **kwargs) - amount


def add_weight(module, forward, *args, **kwargs):
    return forward(*args, **kwargs) + module.weight


WRAPPERS = {"one": add_one, "double": double, "three": functools.partial(subtract, 3)}


def test_wrappers_run_around_each_other_the_last_one_outermost():
    module = Scale()
    for name, wrapper in WRAPPERS.items():
        wrap_forward(module, wrapper, name)
    assert torch.equal(module(X), torch.full((1, 3), 2 * (2.0 + 1) - 3))


def test_arguments_and_the_signature_are_those_of_the_wrapped_forward():
    module = Scale()
    before = inspect.signature(module.forward)
    wrap_forward(module, add_one, "one")
    wrap_forward(module, double, "double")
    assert inspect.signature(module.forward) == before
    assert torch.equal(module(X, twice=True), torch.full((1, 3), 10.0))


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS)))
def test_wrappers_come_off_by_name_in_any_order(order):
    module = Scale()
    for name, wrapper in WRAPPERS.items():
        wrap_forward(module, wrapper, name)
    left = dict(WRAPPERS)
    for name in order:
        unwrap_forward(module, name)
        del left[name]
        expected = Scale()
        for other, wrapper in left.items():
            wrap_forward(expected, wrapper, other)
        assert not is_wrapped(module, name)
        assert torch.equal(module(X), expected(X))
    assert "forward" not in vars(module)


def test_a_wrapper_of_the_same_name_is_put_there_once():
    module = Scale()
    wrap_forward(module, add_one, "one")
    wrap_forward(module, double, "double")
    wrap_forward(module, add_one, "one")
    assert torch.equal(module(X), torch.full((1, 3), 6.0))


def test_a_forward_that_somebody_else_has_replaced_runs_inside_and_comes_back():
    module = Scale()
    theirs = functools.partial(torch.add, X)
    module.forward = theirs
    assert has_foreign_forward(module)
    wrap_forward(module, double, "double")
    assert has_foreign_forward(module)
    assert torch.equal(module(X), torch.full((1, 3), 4.0))
    unwrap_forward(module, "double")
    assert module.forward is theirs


def test_our_own_wrappers_are_not_foreign():
    module = Scale()
    wrap_forward(module, double, "double")
    assert not has_foreign_forward(module)


def test_a_wrapper_that_is_not_there_or_out_of_reach_is_an_error():
    module = Scale()
    wrap_forward(module, add_one, "one")
    with pytest.raises(PeftkitError, match="Scale has no wrapper 'double'"):
        unwrap_forward(module, "double")
    module.forward = functools.partial(torch.add, X)
    with pytest.raises(PeftkitError, match="undo what else has replaced it"):
        unwrap_forward(module, "one")


def test_a_deep_copy_is_wrapped_around_its_own_modules():
    model = nn.Sequential(Scale(), Scale())
    for module in model:
        wrap_forward(module, add_weight, "weight")
        wrap_forward(module, double, "double")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for module in copied:
            module.weight.zero_()
    assert torch.equal(copied(X), torch.zeros(1, 3))
    assert torch.equal(model(X), torch.full((1, 3), 2 * (2 * (2.0 + 2) * 2 + 2)))


def test_a_wrapped_module_can_be_pickled():
    module = Scale()
    wrap_forward(module, WRAPPERS["three"], "three")
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(X), module(X))
    assert loaded.forward.module is loaded


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_wrapped_module_runs_again_under_gradient_checkpointing(use_reentrant):
    gradients = []
    for is_checkpointed in (False, True):
        module = Scale()
        wrap_forward(module, add_weight, "weight")
        x = X.clone().requires_grad_()
        if is_checkpointed:
            output = checkpoint(module, x, use_reentrant=use_reentrant)
        else:
            output = module(x)
        output.pow(2).sum().backward()
        gradients.append((x.grad, module.weight.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_a_compiled_model_runs_its_wrappers():
    module = Scale()
    wrap_forward(module, WRAPPERS["three"], "three")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), module(X))
