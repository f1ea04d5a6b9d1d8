"""Recomputed functions give the same numbers, and keep nothing but their inputs."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import peftkit
from peftkit.lean.norms_and_feed_forwards import recompute_feed_forwards, recompute_norms
from peftkit.lean.recomputation import _holders_of_an_unshared_gradient, recomputed
from peftkit.memory.storages import LiveStorages
from peftkit.methods.lora.forward_backward import Update, dropped
from tests.conftest import llama_config

ROWS, WIDTH, RANK = 32, 16, 2
BYTES = ROWS * WIDTH * 4


class Counted:
    """A function that counts how often it runs."""

    def __init__(self, function):
        self.function, self.runs = function, 0

    def __call__(self, *inputs):
        self.runs += 1
        return self.function(*inputs)


def gate(x, y):
    return F.silu(x) * y


def norm(x):
    return F.rms_norm(x, (WIDTH,))


def leaves(*sizes, dtype=torch.float32):
    return [torch.randn(*size, dtype=dtype, requires_grad=True) for size in sizes]


def adapter(out=WIDTH):
    return leaves((RANK, WIDTH), (out, RANK))


def updated(x, a, b):
    return Update(x, a, b, 2.0, torch.float32).alone()


def plain_update(x, a, b):
    return F.linear(F.linear(x, a), b) * 2.0


def gradients(output, inputs, **how):
    return torch.autograd.grad(output.sin().sum(), inputs, **how)


def all_equal(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def all_close(ones, others):
    return all(
        torch.allclose(one, other, atol=1e-5) for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_recomputed_function_has_the_same_output_and_gradients(dtype):
    inputs = leaves((ROWS, WIDTH), (ROWS, WIDTH), dtype=dtype)
    output = recomputed(gate, *inputs)
    assert torch.equal(output, gate(*inputs))
    assert all_equal(gradients(output, inputs), gradients(gate(*inputs), inputs))


def test_without_a_gradient_the_function_runs_as_it_is():
    (x,) = leaves((ROWS, WIDTH))
    with torch.no_grad():
        assert recomputed(norm, x).grad_fn is None
    assert recomputed(norm, x.detach()).grad_fn is None
    one_of_two = recomputed(gate, x, torch.randn(ROWS, WIDTH))
    assert type(one_of_two.grad_fn).__name__ == "MulBackward0"


def kept_by(make):
    """The bytes that `make` leaves alive, its output not counted."""
    with LiveStorages() as storages:
        output = make()
        return storages.live - output.untyped_storage().nbytes(), output


def test_a_recomputed_function_keeps_nothing_but_its_inputs():
    """Autograd keeps the root mean squares of a norm, an activation, and what the layer behind them
    reads.
    """
    x, y = leaves((ROWS, WIDTH), (ROWS, WIDTH))
    a, b = adapter()
    small = ROWS * RANK * 4  # A x
    for function, inputs in ((norm, (x,)), (gate, (x, y))):
        assert kept_by(lambda f=function, i=inputs: recomputed(f, *i))[0] == 0
        assert kept_by(lambda f=function, i=inputs: updated(recomputed(f, *i), a, b))[0] == small
        assert kept_by(lambda f=function, i=inputs: plain_update(f(*i), a, b))[0] >= small + BYTES


def test_a_chain_of_a_norm_and_dropout_keeps_nothing_but_its_input():
    (x,) = leaves((ROWS, WIDTH))
    a, b = adapter()

    def lean():
        return updated(dropped(recomputed(norm, x), 0.5, torch.float32), a, b)

    def plain():
        return plain_update(F.dropout(norm(x), 0.5), a, b)

    found = []
    for make in (lean, plain):
        torch.manual_seed(3)
        kept, output = kept_by(make)
        found.append((kept, output, gradients(output, (x, a, b)), torch.rand(1)))
    (lean_kept, *lean_found), (plain_kept, *plain_found) = found
    state = torch.get_rng_state().numel()
    assert lean_kept <= ROWS * RANK * 4 + state
    assert plain_kept > 2 * BYTES
    assert torch.allclose(lean_found[0], plain_found[0], atol=1e-5)
    assert all_close(lean_found[1], plain_found[1])
    assert torch.equal(lean_found[2], plain_found[2])  # neither pass moves the generator by more


def test_recomputed_dropout_leaves_the_random_generator_where_it_is():
    (x,) = leaves((ROWS, WIDTH))
    output = dropped(x, 0.5, torch.float32)
    state = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x.grad == 0, output == 0)


def three_readers(read, function, x):
    """Two updates and something that autograd keeps the output for."""
    (h, *weights) = function(x), *x.weights
    return read(h, *weights[:2]) + read(h, *weights[2:4]) + h * h


def test_several_readers_of_an_output_recompute_it_once():
    (x,) = leaves((ROWS, WIDTH))
    x.weights = [*adapter(), *adapter()]
    counted = Counted(norm)
    output = three_readers(updated, lambda x: recomputed(counted, x), x)
    expected = three_readers(plain_update, norm, x)
    assert counted.runs == 1
    inputs = (x, *x.weights)
    assert all_close(gradients(output, inputs), gradients(expected, inputs))
    assert counted.runs == 2


def test_a_retained_graph_gives_the_same_gradients_again_and_keeps_nothing_in_between():
    (x,) = leaves((ROWS, WIDTH))
    a, b = adapter()
    counted = Counted(norm)
    output = updated(recomputed(counted, x), a, b)
    with LiveStorages() as storages:
        first = gradients(output, (x, a, b), retain_graph=True)
        assert storages.live == sum(each.untyped_storage().nbytes() for each in first)
    assert all_equal(gradients(output, (x, a, b)), first)
    assert counted.runs == 3
    with pytest.raises(RuntimeError, match="second time"):
        gradients(output, (x, a, b))


def test_a_backward_pass_that_stops_early_and_the_next_one_are_both_right():
    (x,) = leaves((ROWS, WIDTH))
    a, b = adapter()
    output = updated(recomputed(norm, x), a, b)
    (only_a,) = gradients(output, (a,), retain_graph=True)
    assert all_equal(gradients(output, (a, x))[:1], (only_a,))


@pytest.mark.parametrize("chain", [False, True])
def test_a_recomputed_chain_under_non_reentrant_checkpointing_has_the_same_gradients(chain):
    x, y = leaves((ROWS, WIDTH), (ROWS, WIDTH))
    a, b = adapter()

    def block(x, y):
        h = recomputed(gate, x, y)
        h = dropped(h, 0.5, torch.float32) if chain else h
        return updated(h, a, b) + h

    found = []
    for run in (block, lambda *inputs: checkpoint(block, *inputs, use_reentrant=False)):
        torch.manual_seed(3)
        kept, output = kept_by(lambda run=run: run(x, y))
        found.append((output, gradients(output, (x, y, a, b))))
    state = torch.get_rng_state().numel()
    assert kept <= 2 * state
    assert torch.equal(found[0][0], found[1][0])
    assert all_equal(found[0][1], found[1][1])


def offloaded():
    """Hooks that hand saved tensors back as others, which know nothing of where they come from."""
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x)


@pytest.mark.parametrize("around", [contextlib.nullcontext, offloaded])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("function", [norm, gate])
def test_a_checkpointed_block_saves_tensors_from_outside_of_it_as_they_are(
    function, nested, around
):
    """The output of a post-norm block, or normed embeddings: the second pass may not know how to
    compute them again.
    """
    inputs = leaves(*[(ROWS, WIDTH)] * (1 if function is norm else 2))
    weights = adapter()

    def block(h):
        return updated(h, *weights) + h

    def outer(h):
        return checkpoint(block, h, use_reentrant=False)

    with around():
        output = checkpoint(
            outer if nested else block, recomputed(function, *inputs), use_reentrant=False
        )
    h = function(*inputs)
    expected = plain_update(h, *weights) + h
    assert all_close(
        gradients(output, (*inputs, *weights)), gradients(expected, (*inputs, *weights))
    )


def test_under_hooks_that_stay_a_recomputed_function_keeps_its_inputs():
    (x,) = leaves((ROWS, WIDTH))
    weights, kept = adapter(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        output = updated(recomputed(norm, x * 2), *weights)
    assert kept.count(x.shape) == 2  # for the norm and for the update, and it is one tensor
    h = norm(x * 2)
    expected = plain_update(h, *weights)
    assert all_close(gradients(output, (x, *weights)), gradients(expected, (x, *weights)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_dropout_is_drawn_again_where_checkpointing_draws_it_again(reentrant):
    (x,) = leaves((ROWS, WIDTH))
    a, b = adapter()

    def block(x):
        return updated(dropped(recomputed(norm, x), 0.5, torch.float32), a, b)

    torch.manual_seed(3)
    expected = gradients(block(x), (x,))
    torch.manual_seed(3)
    output = checkpoint(block, x, use_reentrant=reentrant)
    output.sin().sum().backward()
    assert torch.equal(x.grad, expected[0])


@pytest.mark.parametrize("backward_inside", [False, True])
def test_recomputation_runs_under_the_autocast_of_the_forward_pass(backward_inside):
    (x,) = leaves((ROWS, WIDTH))
    weight = torch.randn(WIDTH, WIDTH)
    dtypes = []

    def function(x):
        output = F.linear(x, weight)
        dtypes.append(output.dtype)
        return output.float() * 2

    with torch.autocast("cpu", torch.bfloat16):
        output, expected = recomputed(function, x), function(x)
        if backward_inside:
            found = gradients(output, (x,))
    if not backward_inside:
        found = gradients(output, (x,))
    assert set(dtypes) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    assert all_equal(found, gradients(expected, (x,)))


def test_recomputation_runs_without_autocast_where_the_forward_pass_had_none():
    (x,) = leaves((ROWS, WIDTH))
    weight = torch.randn(WIDTH, WIDTH)
    output = recomputed(lambda x: F.linear(x, weight), x)
    expected = F.linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert all_equal(gradients(output, (x,)), gradients(expected, (x,)))
        assert torch.is_autocast_enabled("cpu")


def test_an_input_that_is_changed_in_place_before_the_backward_pass_is_an_error():
    x, y = leaves((ROWS, WIDTH), (ROWS, WIDTH))
    a, b = adapter()
    for change in (0, 1):
        inputs = [x * 2, y * 2]
        output = updated(recomputed(gate, *inputs), a, b)
        inputs[change].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(output, (x, y))


def test_a_recomputed_output_that_is_changed_in_place_is_saved_as_it_became():
    """The layer behind reads the changed tensor, which cannot be computed again from the inputs."""
    (x,) = leaves((ROWS, WIDTH))
    a, b = adapter()

    def block(read, h):
        h += 1
        return read(h, a, b)

    found = gradients(block(updated, recomputed(norm, x)), (x, a, b))
    assert all_close(found, gradients(block(plain_update, norm(x)), (x, a, b)))


@pytest.mark.parametrize("which", ["first", "second"])
def test_an_output_whose_input_was_changed_since_is_saved_itself(which):
    (x,) = leaves((ROWS, WIDTH))
    a, b = adapter()

    def block(read, norm, gate):
        y = x * 2
        h = norm(y)
        output = gate(h, y) if which == "second" else h
        (h if which == "second" else y).add_(1)
        return read(output, a, b)

    found = block(updated, lambda x: recomputed(norm, x), lambda *inputs: recomputed(gate, *inputs))
    expected = block(plain_update, norm, gate)
    assert torch.allclose(found, expected, atol=1e-5)
    (of_a,) = gradients(found, (a,), retain_graph=True)
    assert torch.allclose(of_a, gradients(expected, (a,), retain_graph=True)[0], atol=1e-5)


class Toy(nn.Module):
    """A norm, a gated feed-forward part, and weights that may be trained."""

    def __init__(self):
        super().__init__()
        self.norm = LlamaRMSNorm(WIDTH)
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.act = nn.SiLU()

    def forward(self, x):
        x = self.norm(x)
        return self.down(self.act(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, nn.LayerNorm])
def test_a_norm_that_is_trained_keeps_what_it_needs(kind):
    layer, twin = kind(WIDTH), kind(WIDTH)
    assert recompute_norms(layer) == 1
    (x,) = leaves((ROWS, WIDTH))
    for trained in (False, True):
        for each in (layer, twin):
            each.requires_grad_(trained)
        output, expected = layer(x), twin(x)
        assert hasattr(output, "_peftkit_origin") != trained
        assert torch.equal(output, expected)
        inputs = [[x, *(each.parameters() if trained else ())] for each in (layer, twin)]
        assert all_close(gradients(output, inputs[0]), gradients(expected, inputs[1]))


def test_trained_layers_around_a_recomputed_function_get_their_gradients():
    toy, twin = Toy(), Toy()
    twin.load_state_dict(toy.state_dict())
    toy.norm.requires_grad_(False)
    recompute_norms(toy)
    recompute_feed_forwards(toy)
    (x,) = leaves((ROWS, WIDTH))
    found, expected = (
        gradients(each(x), [x, each.gate.weight, each.up.weight, each.down.weight])
        for each in (toy, twin)
    )
    assert all_close(found, expected)


@pytest.mark.parametrize("rows", [1, 5, 24, 100])
def test_a_large_output_is_recomputed_some_rows_at_a_time_with_the_same_gradients(
    monkeypatch, rows
):
    gate, up = (torch.randn(2, 12, 16, requires_grad=True) for _ in range(2))
    weight = torch.randn(16, 16)

    def gated(gate, up):
        return torch.nn.functional.silu(gate) * up

    (gated(gate, up) @ weight).square().sum().backward()
    wanted = [each.grad.clone() for each in (gate, up)]
    gate.grad = up.grad = None
    monkeypatch.setattr("peftkit.lean.recomputation._LARGE", rows * 16 * 4)
    (recomputed(gated, gate, up, by_rows=True) @ weight).square().sum().backward()
    assert all(
        torch.allclose(each.grad, gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
        for each, gradient in zip((gate, up), wanted, strict=True)
    )


def test_the_backward_pass_of_a_large_output_holds_no_whole_intermediate(monkeypatch):
    def peak(by_rows):
        gate, up = (torch.randn(256, 64, requires_grad=True) for _ in range(2))
        output = recomputed(
            lambda gate, up: torch.nn.functional.silu(gate) * up, gate, up, by_rows=by_rows
        )
        gradient = torch.ones_like(output)
        with LiveStorages() as storages:
            output.backward(gradient)
        return storages.peak

    size = 256 * 64 * 4
    monkeypatch.setattr("peftkit.lean.recomputation._LARGE", size // 16)
    assert peak(by_rows=True) < 2.6 * size  # two gradients, and a slice of all else
    assert peak(by_rows=False) > 3.5 * size


def in_slices(gate, up, monkeypatch):
    monkeypatch.setattr("peftkit.lean.recomputation._LARGE", gate.numel() // 4)
    return recomputed(lambda gate, up: F.silu(gate) * up, gate, up, by_rows=True)


def held_by(holder, output, kept):
    """Let somebody hold the gradient that `output` gets."""
    if holder == "hook":
        output.register_hook(lambda gradient: kept.append(gradient))
    elif holder == "view":
        output.register_hook(lambda gradient: kept.append(gradient.detach().flatten()))
    elif holder == "node":
        aside = torch.zeros_like(output, requires_grad=True)
        kept.append(aside)
        return output + aside  # the sum hands one gradient to both
    return output


@pytest.mark.parametrize("holder", ["hook", "view", "node"])
def test_a_gradient_that_somebody_holds_is_not_overwritten(monkeypatch, holder):
    gate, up = leaves((64, 16), (64, 16))
    weight, kept = torch.randn(64, 16), []
    (held_by(holder, in_slices(gate, up, monkeypatch), kept) * weight).sum().backward()
    held = kept[0].grad if holder == "node" else kept[0].view(64, 16)
    assert torch.equal(held, weight)
    plain = torch.autograd.grad((F.silu(gate) * up * weight).sum(), (gate, up))
    assert torch.allclose(gate.grad, plain[0])
    assert torch.allclose(up.grad, plain[1])


def test_counting_the_holders_of_a_gradient_may_happen_in_a_checkpointed_block():
    """Which must save as much when it is computed again, and learns nothing then."""
    inputs = leaves((ROWS, WIDTH), (ROWS, WIDTH))
    _holders_of_an_unshared_gradient.cache_clear()
    output = checkpoint(lambda *inputs: recomputed(gate, *inputs), *inputs, use_reentrant=False)
    assert _holders_of_an_unshared_gradient.cache_info().currsize
    for one, other in zip(gradients(output, inputs), gradients(gate(*inputs), inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("holder", [None, "hook"])
def test_a_gradient_that_nobody_holds_is_overwritten_with_the_first_inputs(monkeypatch, holder):
    gate, up = leaves((64, 16), (64, 16))
    output, places, kept = in_slices(gate * 1, up * 1, monkeypatch), [], []
    held_by(holder, output, kept)
    output.grad_fn.register_prehook(lambda gradients: places.append(gradients[0].data_ptr()))
    output.grad_fn.next_functions[0][0].register_prehook(
        lambda gradients: places.append(gradients[0].data_ptr())
    )
    (output * torch.randn(64, 16)).sum().backward()
    assert (places[0] == places[1]) == (holder is None)


def test_a_lora_layer_recomputes_its_input_in_slices(monkeypatch):
    def gradients(large):
        monkeypatch.setattr("peftkit.lean.recomputation._LARGE", large)
        torch.manual_seed(0)
        model = peftkit.attach(
            LlamaForCausalLM(llama_config()).requires_grad_(False), peftkit.LoraConfig(r=4)
        )
        ids = torch.randint(4, 320, (2, 24))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1)
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole, slices = gradients(2**26), gradients(1024)
    assert all(torch.allclose(whole[name], slices[name], rtol=1e-5, atol=1e-8) for name in whole)
