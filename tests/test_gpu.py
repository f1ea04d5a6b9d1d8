"""What only a CUDA device can show. Run by benchmarks/gpu.sh."""

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
from tests.conftest import logits, randomize
from tests.training.job import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_float64(tmp_path, kind):
    save_llama(tmp_path, layers=2)
    model = attached_by_peftkit(tmp_path, kind)
    ids = torch.randint(4, 320, (2, 24)).cuda()
    expected = reference(model, ids)
    before = gradients(model, ids)
    evaluate(model, ids)
    after = gradients(model, ids)
    theirs = relative_errors(gradients(attached_by_peft(tmp_path, kind, model), ids), expected)
    assert relative_errors(before, expected).max() <= theirs.max() * 1.05
    assert relative_errors(after, expected).max() <= theirs.max() * 1.05


@pytest.mark.parametrize("quantization", [None, *KINDS])
def test_nothing_is_upcast_and_detach_gives_the_backbone_back(llama_dir, quantization):
    backbone = peftkit.load_backbone(llama_dir, quantization=quantization)
    assert {p.device.type for p in backbone.parameters()} == {"cuda"}
    assert {p.dtype for p in backbone.parameters() if p.dtype.is_floating_point} == {torch.bfloat16}
    ids = torch.randint(4, 320, (2, 12)).cuda()
    expected = logits(backbone, ids)
    model = randomize(peftkit.attach(backbone, peftkit.LoraConfig(r=4)))
    assert not torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(peftkit.detach(model), ids), expected)


@pytest.mark.parametrize("quantization", [None, *KINDS])
def test_saved_loaded_and_merged_on_the_gpu(llama_dir, tmp_path, quantization):
    ids = torch.randint(4, 320, (2, 12)).cuda()
    model = randomize(
        peftkit.attach(peftkit.load_backbone(llama_dir, quantization=quantization), peftkit.LoraConfig(r=4))
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
    from peftkit.training.metrics import read_metrics

    settings = {"batch_size": 8, "epochs": 16, "precision": precision, "learning_rate": 3e-2}
    dtype = "float16" if precision == "fp16" else "bfloat16"
    train(tmp_path, llama_dir, settings, quantization=quantization, dtype=dtype)
    curve = [entry["loss"] for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(curve[-3:]) < 0.95 * sum(curve[:3])
