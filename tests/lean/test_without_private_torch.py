"""Where torch does not tell what `peftkit.internals.torch_autograd` asks, numbers stay the same."""

import pytest
import torch

from peftkit.internals import torch_autograd
from peftkit.lean import Lean
from peftkit.lean.recomputation import Kept, _holders_of_an_unshared_gradient, recomputed
from tests.lean.step import attached, batch, configured, step, stored

MISSING = {
    "storage use counts": (torch._C, "_storage_Use_Count"),
    "the hook of saved tensors": (torch._C._autograd, "_top_saved_tensors_default_hooks"),
}


@pytest.fixture(params=MISSING)
def missing(request, monkeypatch):
    """Takes a private function away from torch."""
    _holders_of_an_unshared_gradient.cache_clear()
    yield lambda: monkeypatch.delattr(*MISSING[request.param])
    monkeypatch.undo()
    _holders_of_an_unshared_gradient.cache_clear()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("storage", ["float32", "nf4"])
def test_a_step_without_a_private_function_of_torch_gives_the_same_numbers(
    storage, checkpointing, llama_dir, missing, monkeypatch
):
    monkeypatch.setattr("peftkit.lean.recomputation._LARGE", 1024)
    lean = Lean(weights=storage == "nf4")
    model = attached(stored(storage, llama_dir), configured("lora"), lean)
    expected_loss, expected = step(model, batch(), checkpointing=checkpointing)
    missing()
    _holders_of_an_unshared_gradient.cache_clear()
    model = attached(stored(storage, llama_dir), configured("lora"), lean)
    loss, found = step(model, batch(), checkpointing=checkpointing)
    assert torch.equal(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_holders_are_unknown_without_use_counts(monkeypatch):
    assert torch_autograd.count_holders(torch.ones(2)) is not None
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    assert torch_autograd.count_holders(torch.ones(2)) is None


def test_without_the_hook_nothing_counts_as_checkpointed(monkeypatch):
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert torch_autograd.is_checkpointing()
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
        assert not torch_autograd.is_checkpointing()
        assert torch_autograd.saved_tensors_hook() is torch_autograd.UNKNOWN


def test_without_the_hook_an_output_that_is_read_is_saved_itself(monkeypatch):
    """More memory, and right in a checkpointed block whatever the first pass has saved."""
    x = torch.randn(4, 8, requires_grad=True)
    assert Kept.of(recomputed(torch.sin, x)) is not None
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    assert Kept.of(recomputed(torch.sin, x)) is None
