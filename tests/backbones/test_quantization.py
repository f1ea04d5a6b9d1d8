"""QLoRA gradients against float64 through the dequantised weights, before and after an evaluation
pass.
"""

import pytest
import torch
from bitsandbytes.nn import Linear4bit

import peftkit
from benchmarks.gradients import (
    KINDS,
    attached_by_peft,
    attached_by_peftkit,
    gradients,
    reference,
    relative_errors,
    save_llama,
)
from peftkit.backbones.cpu_weight_repacking import prevent_cpu_repacking
from peftkit.backbones.quantization import (
    dequantized_weight,
    model_quantization,
    quantization_of,
)
from tests.conftest import logits, randomize

# PEFT, called without peftkit, sets off a deprecation in transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def wide_llama_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    save_llama(path, layers=2)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_float64_before_and_after_an_evaluation(wide_llama_dir, kind):
    ids = torch.randint(4, 320, (2, 24))
    model = attached_by_peftkit(wide_llama_dir, kind)
    expected = reference(model, ids)
    before = gradients(model, ids)
    logits(model, ids)
    after = gradients(model, ids)
    theirs = relative_errors(
        gradients(attached_by_peft(wide_llama_dir, kind, model), ids), expected
    )
    ours = relative_errors(before, expected)
    assert before.keys() == expected.keys()
    assert ours.median() <= theirs.median() * 1.1
    assert ours.max() <= theirs.max() * 1.1
    assert ours.max() < 0.05
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bit_weights_that_a_cpu_evaluation_has_repacked_are_unpacked(wide_llama_dir, kind):
    """A model that somebody else has loaded and evaluated: unpacked, it computes what it computed,
    and has a gradient.
    """
    ids = torch.randint(4, 320, (2, 24))
    model = attached_by_peft(
        wide_llama_dir, kind, attached_by_peftkit(wide_llama_dir, kind)
    ).unload()
    packed = logits(model, ids)
    prevent_cpu_repacking(model)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert not any(
        getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers
    )
    unpacked = logits(model, ids)
    assert (packed - unpacked).abs().max() <= 0.02 * packed.abs().max()
    adapted = randomize(peftkit.attach(model, peftkit.LoraConfig(r=8)))
    assert relative_errors(gradients(adapted, ids), reference(adapted, ids)).max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_dequantised_weight_is_the_one_that_the_layer_computes_with(llama_dir, kind):
    model = peftkit.load_backbone(llama_dir, quantization=kind)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert quantization_of(layer) == kind == model_quantization(model)
    x = torch.eye(64, dtype=torch.bfloat16)
    with torch.no_grad():
        found = layer.train()(x).float().T
    assert torch.allclose(found, dequantized_weight(layer).float(), rtol=1e-2, atol=1e-4)
