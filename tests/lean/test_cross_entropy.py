"""The chunked cross-entropy beside that of whole logits, and against float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peftkit.lean import cross_entropy
from peftkit.lean.cross_entropy import summed_cross_entropy
from peftkit.memory.storages import LiveStorages

TOKENS, WIDTH, VOCABULARY = 50, 24, 300


def chunks(monkeypatch, tokens, *, float32=None):
    """Let chunks have so many tokens, and so many logits be computed in float32 at a time."""
    monkeypatch.setattr(cross_entropy, "_FEWEST_TOKENS", tokens)
    monkeypatch.setattr(cross_entropy, "_CHUNKS", 10**6)
    monkeypatch.setattr(cross_entropy, "_LARGEST_FLOAT32", float32 or 2**22)


def problem(tokens=TOKENS, vocabulary=VOCABULARY, dtype=torch.float32):
    hidden = torch.randn(tokens, WIDTH).to(dtype).requires_grad_()
    head = nn.Linear(WIDTH, vocabulary).to(dtype)
    return hidden, torch.randint(vocabulary, (tokens,)), head


def whole(hidden, targets, head):
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


def in_float64(hidden, targets, head, factor=1.0):
    """The loss, its gradient for the hidden states and for the head's parameters, in float64
    throughout.
    """
    x = hidden.detach().double().requires_grad_()
    weights = [p.detach().double().requires_grad_() for p in head.parameters()]
    loss = F.cross_entropy(F.linear(x, *weights), targets, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss * factor, (x, *weights))


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def in_chunks(hidden, targets, head, factor=1.0, trained=True):
    parameters = list(head.parameters()) if trained else []
    loss = summed_cross_entropy(hidden, targets, head, parameters)
    return loss.detach(), torch.autograd.grad(loss * factor, (hidden, *parameters))


@pytest.mark.parametrize("tokens", [1, 2, 7, 49, 50, 64])
@pytest.mark.parametrize("float32", [1, 1000, 2**22])
def test_chunks_of_any_size_give_the_value_and_the_gradients(monkeypatch, tokens, float32):
    chunks(monkeypatch, tokens, float32=float32)
    hidden, targets, head = problem()
    loss, gradients = in_chunks(hidden, targets, head, factor=0.37)
    expected, exact = in_float64(hidden, targets, head, factor=0.37)
    assert relative(loss, expected) < 1e-6
    assert all(relative(*pair) < 1e-6 for pair in zip(gradients, exact, strict=True))


def weighted_in_float64(hidden, targets, head, weights):
    x = hidden.detach().double().requires_grad_()
    parameters = [p.detach().double().requires_grad_() for p in head.parameters()]
    losses = F.cross_entropy(F.linear(x, *parameters), targets, reduction="none")
    loss = (losses * weights.double()).sum()
    return loss.detach(), torch.autograd.grad(loss, (x, *parameters))


@pytest.mark.parametrize("tokens", [1, 7, 64])
@pytest.mark.parametrize("float32", [1, 1000, 2**22])
def test_tokens_of_several_weights_give_the_value_and_the_gradients(monkeypatch, tokens, float32):
    chunks(monkeypatch, tokens, float32=float32)
    hidden, targets, head = problem()
    weights = torch.rand(TOKENS) * 9 + 0.1
    parameters = list(head.parameters())
    loss = summed_cross_entropy(hidden, targets, head, parameters, weights)
    gradients = torch.autograd.grad(loss, (hidden, *parameters))
    expected, exact = weighted_in_float64(hidden, targets, head, weights)
    assert relative(loss.detach(), expected) < 1e-6
    assert all(relative(*pair) < 1e-6 for pair in zip(gradients, exact, strict=True))
    with torch.no_grad():
        assert relative(summed_cross_entropy(hidden, targets, head, [], weights), expected) < 1e-6


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e3])
def test_large_and_small_weights_fit_into_16_bits(monkeypatch, largest):
    """A thousand times a gradient of the logits is not a number of float16."""
    chunks(monkeypatch, 8)
    hidden, targets, head = problem(dtype=torch.float16)
    weights = torch.linspace(0.1, 1, TOKENS) * largest
    loss = summed_cross_entropy(hidden, targets, head, list(head.parameters()), weights)
    (found,) = torch.autograd.grad(loss / largest, hidden)
    expected, (exact, *_) = weighted_in_float64(hidden, targets, head, weights)
    assert relative(loss.detach(), expected) < 1e-3
    assert relative(found * largest, exact) < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_cross_entropy_in_chunks_is_as_exact_as_the_whole_one(monkeypatch, dtype):
    chunks(monkeypatch, 8)
    hidden, targets, head = problem(dtype=dtype)
    loss, gradients = in_chunks(hidden, targets, head)
    expected, exact = in_float64(hidden, targets, head)
    theirs = torch.autograd.grad(whole(hidden, targets, head), (hidden, *head.parameters()))
    assert relative(loss, expected) < 1e-3
    assert [each.dtype for each in gradients] == [dtype] * 3
    for found, other, value, factor in zip(gradients, theirs, exact, (1.1, 1.5, 1.5), strict=True):
        assert relative(found, value) <= factor * relative(
            other, value
        )  # a head's is rounded once a chunk


def test_cross_entropy_in_chunks_under_autocast_is_as_exact_as_the_whole_one(monkeypatch):
    chunks(monkeypatch, 8)
    hidden, targets, head = problem()
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = in_chunks(hidden, targets, head)
        theirs = torch.autograd.grad(whole(hidden, targets, head), (hidden, *head.parameters()))
    expected, exact = in_float64(hidden, targets, head)
    assert relative(loss, expected) < 1e-3
    for found, other, value in zip(gradients, theirs, exact, strict=True):
        assert relative(found, value) <= 1.1 * relative(other, value)


@pytest.mark.parametrize("tokens", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_few_tokens_or_none_have_the_same_cross_entropy(tokens, dtype):
    hidden, targets, head = problem(tokens, dtype=dtype)
    loss, (of_hidden, of_weight, _) = in_chunks(hidden, targets, head)
    assert torch.allclose(loss, whole(hidden, targets, head), rtol=2e-3)
    assert of_hidden.shape == hidden.shape
    assert bool(of_weight.any()) == (tokens > 0)


def test_a_frozen_head_gives_a_gradient_to_the_hidden_states_only():
    hidden, targets, head = problem()
    head.requires_grad_(False)
    _, (found,) = in_chunks(hidden, targets, head, trained=False)
    assert relative(found, in_float64(hidden, targets, head)[1][0]) < 1e-6


def test_a_trained_head_on_frozen_hidden_states_gets_its_gradient():
    hidden, targets, head = problem()
    loss = summed_cross_entropy(hidden.detach(), targets, head, list(head.parameters()))
    loss.backward()
    exact = in_float64(hidden, targets, head)[1][1:]
    assert all(
        relative(p.grad, value) < 1e-6 for p, value in zip(head.parameters(), exact, strict=True)
    )


def test_without_gradients_only_the_value_is_computed():
    hidden, targets, head = problem()
    with torch.no_grad():
        loss = summed_cross_entropy(hidden, targets, head, list(head.parameters()))
    assert loss.grad_fn is None
    assert torch.allclose(loss, whole(hidden, targets, head))


def test_a_parameter_that_no_logit_depends_on_gets_a_gradient_of_zero():
    hidden, targets, head = problem()
    unused = nn.Parameter(torch.ones(3))
    loss = summed_cross_entropy(hidden, targets, head, [unused, *head.parameters()])
    loss.backward()
    assert not unused.grad.any()


def test_the_gradient_of_a_16_bit_head_is_summed_in_float32(monkeypatch):
    """Summed in bfloat16, hundreds of chunks would lose most of it."""
    chunks(monkeypatch, 1)
    hidden, targets, head = problem(600, 20, torch.bfloat16)
    with torch.no_grad():
        hidden.copy_(hidden.abs())  # all of one sign: a sum that grows
    _, (_, of_weight, of_bias) = in_chunks(hidden, targets, head)
    _, (_, weight, bias) = in_float64(hidden, targets, head)
    one_rounding = 2**-8
    assert relative(of_weight, weight) < one_rounding
    assert relative(of_bias, bias) < one_rounding


def test_small_float16_gradients_survive_a_large_vocabulary(monkeypatch):
    """Each of 100,000 equally likely tokens has a gradient of 1e-5, where float16 has only a few
    bits left.
    """
    chunks(monkeypatch, 8)
    hidden, targets, head = problem(16, 100_000, torch.float16)
    with torch.no_grad():
        head.weight.mul_(0.02)
        head.bias.zero_()
    loss, gradients = in_chunks(hidden, targets, head, factor=1.0)
    expected, exact = in_float64(hidden, targets, head)
    assert relative(loss, expected) < 1e-5
    uncommon = torch.ones(100_000, dtype=torch.bool)
    uncommon[targets] = False
    found, value = gradients[1][uncommon].double(), exact[1][uncommon]
    assert relative(gradients[0], exact[0]) < 1e-3
    assert relative(found, value) < 0.02


@pytest.mark.parametrize("factor", [65536.0, 1e-3])
def test_a_scaled_float16_loss_neither_overflows_nor_vanishes(monkeypatch, factor):
    """What a gradient scaler, or the mean over a large batch, multiplies the loss with comes after
    the chunks.
    """
    chunks(monkeypatch, 8)
    hidden, targets, head = problem(dtype=torch.float16)
    head.requires_grad_(False)
    _, (found,) = in_chunks(hidden, targets, head, trained=False)
    _, (scaled,) = in_chunks(hidden, targets, head, factor=factor, trained=False)
    expected = (in_float64(hidden, targets, head)[1][0] * factor).to(torch.float16)
    assert torch.equal(torch.isfinite(scaled), torch.isfinite(expected))
    finite = torch.isfinite(expected)
    assert relative(scaled[finite], expected[finite].double()) < 2e-3
    assert found.dtype == torch.float16


def test_the_cross_entropy_of_certain_and_impossible_tokens_is_exact():
    """A token that is all but certain has a gradient of two nearly equal numbers' difference."""
    hidden, targets, _ = problem(4, 5)
    logits = torch.zeros(4, 5)
    logits[0, targets[0]], logits[1, targets[1]] = 12.0, -200.0
    one, two = nn.Parameter(logits.clone()), logits.double().requires_grad_()
    loss = summed_cross_entropy(hidden, targets, lambda x: one + 0 * x.sum(), [one])
    expected = F.cross_entropy(two, targets, reduction="sum")
    loss.backward()
    (exact,) = torch.autograd.grad(expected, two)
    assert relative(loss.detach(), expected.detach()) < 1e-6
    assert torch.allclose(
        one.grad.double(), exact, rtol=5e-3, atol=1e-9
    )  # as near as float32 knows 1 - p


@pytest.mark.parametrize("trained", [False, True])
def test_the_logits_are_never_whole(monkeypatch, trained):
    """At most those of one chunk, with their gradient, and some rows in float32."""
    chunks(monkeypatch, 32, float32=VOCABULARY)
    hidden, targets, head = problem(400, 3000, torch.bfloat16)
    head.requires_grad_(trained)
    with LiveStorages() as storages:
        loss = summed_cross_entropy(
            hidden, targets, head, list(head.parameters()) if trained else []
        )
        kept = storages.live
    chunk, row = 32 * 3000 * 2, 3000 * 4
    of_head = sum(p.numel() for p in head.parameters()) if trained else 0
    of_hidden = hidden.numel() * 2
    assert kept == 4 * of_head + of_hidden + loss.untyped_storage().nbytes()
    print(
        storages.peak, of_hidden, of_head, chunk, (storages.peak - of_hidden - 6 * of_head) / chunk
    )
    assert storages.peak <= 2 * chunk + 4 * row + 6 * of_head + of_hidden + 2**14
