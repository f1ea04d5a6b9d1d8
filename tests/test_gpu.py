"""What a CUDA device may do otherwise; benchmarks/gpu.sh runs it there. Without one, the CPU is
asked the same.
"""

import pytest
import torch

import peftkit
from benchmarks.gradients import (
    KINDS,
    attached_by_peft,
    attached_by_peftkit,
    evaluate,
    gradients,
    reference,
    relative_errors,
    save_llama,
)
from peftkit.lean.recomputation import recomputed
from tests.conftest import logits, randomize
from tests.contract import METHODS
from tests.training.job import train

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_float64(tmp_path, kind):
    save_llama(tmp_path, layers=2)
    model = attached_by_peftkit(tmp_path, kind)
    ids = torch.randint(4, 320, (2, 24)).to(DEVICE)
    expected = reference(model, ids)
    before = gradients(model, ids)
    evaluate(model, ids)
    after = gradients(model, ids)
    theirs = relative_errors(gradients(attached_by_peft(tmp_path, kind, model), ids), expected)
    for found in (before, after):
        assert relative_errors(found, expected).median() <= theirs.median() * 1.1


@pytest.mark.parametrize("quantization", [None, *KINDS])
def test_nothing_is_upcast_and_detach_gives_the_backbone_back(llama_dir, quantization):
    backbone = peftkit.load_backbone(llama_dir, quantization=quantization)
    assert {p.device.type for p in backbone.parameters()} == {DEVICE}
    assert {p.dtype for p in backbone.parameters() if p.dtype.is_floating_point} == {torch.bfloat16}
    ids = torch.randint(4, 320, (2, 12)).to(DEVICE)
    expected = logits(backbone, ids)
    model = randomize(peftkit.attach(backbone, peftkit.LoraConfig(r=4)))
    assert not torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(peftkit.detach(model), ids), expected)


@pytest.mark.parametrize("quantization", [None, *KINDS])
def test_saved_loaded_and_merged_on_the_gpu(llama_dir, tmp_path, quantization):
    ids = torch.randint(4, 320, (2, 12)).to(DEVICE)
    model = randomize(
        peftkit.attach(
            peftkit.load_backbone(llama_dir, quantization=quantization), peftkit.LoraConfig(r=4)
        )
    )
    expected = logits(model, ids)
    peftkit.save(model, tmp_path / "adapter")
    model = peftkit.load(peftkit.detach(model), tmp_path / "adapter")
    assert torch.equal(logits(model, ids), expected)
    report = peftkit.record(peftkit.merge(model))["merge"]
    assert report["largest_logit_difference"] < 0.05 * report["largest_logit"]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_loop_learns_in_every_precision(llama_dir, tmp_path, precision, quantization):
    from peftkit.training.metrics_log import read_metrics

    settings = {"batch_size": 8, "epochs": 16, "precision": precision, "learning_rate": 3e-2}
    dtype = "float16" if precision == "fp16" else "bfloat16"
    train(tmp_path, llama_dir, settings, quantization=quantization, dtype=dtype)
    curve = [entry["loss"] for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(curve[-3:]) < 0.95 * sum(curve[:3])


@pytest.mark.parametrize("quantization", [None, *KINDS])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_reloads_and_comes_off(llama_dir, tmp_path, method, quantization):
    ids = torch.randint(4, 320, (2, 24)).to(DEVICE)
    backbone = peftkit.load_backbone(llama_dir, quantization=quantization)
    before = logits(backbone, ids)
    model = randomize(peftkit.attach(backbone, METHODS[method]()), 0.1)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    expected = logits(model.requires_grad_(False), ids)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)
    peftkit.save(model, tmp_path)
    plain = peftkit.detach(model)
    assert torch.equal(logits(plain, ids), before)
    assert torch.equal(logits(peftkit.load(plain, tmp_path), ids), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_a_prefix_in_the_fused_kernels_is_a_prefix_in_eager_attention(llama_dir, dtype, padded):
    """Without padding the mask is lower right and the kernel fused; with it the mask is given."""
    backbone = peftkit.load_backbone(llama_dir, dtype=dtype)
    model = randomize(peftkit.attach(backbone, METHODS["prefix"]()), 0.5)
    ids = torch.randint(4, 320, (2, 24)).to(DEVICE)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, -5:] = 0
    found = {}
    for implementation in ("eager", "sdpa"):
        backbone.set_attn_implementation(implementation)
        model.zero_grad()
        given = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        given.float().square().mean().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found[implementation] = (given.detach(), grads)
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    )
    torch.testing.assert_close(found["sdpa"][0], found["eager"][0], **tolerance)
    for ours, theirs in zip(found["sdpa"][1], found["eager"][1], strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("held", [False, True])
def test_a_large_gradient_gives_its_place_away_only_where_nobody_holds_it(monkeypatch, held):
    """The holders of a gradient are counted on the CPU; a GPU's backward pass has own threads."""
    monkeypatch.setattr("peftkit.lean.recomputation._LARGE", 1024)
    gate, up, weight = (torch.randn(64, 32, device=DEVICE) for _ in range(3))
    output = recomputed(torch.mul, gate.requires_grad_() * 1, up.requires_grad_() * 1, by_rows=True)
    kept, places = [], []
    if held:
        output.register_hook(kept.append)
    for node in (output.grad_fn, output.grad_fn.next_functions[0][0]):
        node.register_prehook(lambda gradients: places.append(gradients[0].data_ptr()))
    (output * weight).sum().backward()
    assert all(torch.equal(each, weight) for each in kept)
    assert (places[0] == places[1]) == (not held)
    torch.testing.assert_close(gate.grad, up.detach() * weight)
