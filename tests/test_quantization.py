"""QLoRA gradients against float64 through the dequantised weights, before and after an evaluation pass."""

import copy

import peft
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import peftkit
from peftkit.quantization import (
    bitsandbytes_config,
    dequantized_weight,
    keep_layout,
    model_quantization,
    quantization_of,
)
from tests.conftest import llama_config, logits, randomize

# PEFT, called without peftkit, sets off a deprecation in transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
KINDS = ["nf4", "fp4", "int8"]


@pytest.fixture(scope="module")
def wide_llama_dir(tmp_path_factory):
    """Two layers of width 256, the model on which the reference figures of PEFT were measured."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = llama_config(hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=4)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def reference(model, ids):
    """The same gradients in float64: every weight dequantised to the values that the forward pass uses."""
    plain = LlamaForCausalLM(
        llama_config(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    )
    state = {}
    for name, module in model.get_base_model().named_modules():
        if quantization_of(module):
            state[name.replace(".base_layer", "") + ".weight"] = dequantized_weight(module)
        elif hasattr(module, "weight") and "lora_" not in name and not hasattr(module, "base_layer"):
            state[name + ".weight"] = module.weight.data
    plain.load_state_dict({name: value.double() for name, value in state.items()}, strict=True)
    adapted = peft.get_peft_model(
        plain.double(), copy.deepcopy(model.peft_config["default"]), autocast_adapter_dtype=False
    )
    peft.set_peft_model_state_dict(adapted, peft.get_peft_model_state_dict(model))
    return gradients(adapted.double().train(), ids)


def errors(found, expected):
    assert found.keys() == expected.keys()
    return torch.tensor([(found[k] - expected[k]).norm() / expected[k].norm() for k in expected])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_float64_before_and_after_an_evaluation(wide_llama_dir, kind):
    ids = torch.randint(4, 320, (2, 24))
    model = peftkit.attach(peftkit.load_backbone(wide_llama_dir, quantization=kind), peftkit.LoraConfig(r=8))
    randomize(model)
    expected = reference(model, ids)
    before = gradients(model.train(), ids)
    logits(model, ids)
    after = gradients(model.train(), ids)

    torch.manual_seed(0)
    config = bitsandbytes_config(kind, torch.bfloat16, double=True)
    plain = AutoModelForCausalLM.from_pretrained(wide_llama_dir, dtype=torch.bfloat16, quantization_config=config)
    peft_own = peft.get_peft_model(plain, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    peft.set_peft_model_state_dict(peft_own, peft.get_peft_model_state_dict(model))
    theirs = errors(gradients(peft_own.train(), ids), expected)

    ours = errors(before, expected)
    assert ours.median() <= theirs.median() * 1.001
    assert ours.max() <= theirs.max() * 1.001
    assert ours.max() < 0.05
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_that_were_repacked_before_attach_are_unpacked(wide_llama_dir, kind):
    """A model that somebody else has loaded and evaluated: unpacked, it computes what it computed, and has a gradient."""
    ids = torch.randint(4, 320, (2, 24))
    config = bitsandbytes_config(kind, torch.bfloat16, double=True)
    model = AutoModelForCausalLM.from_pretrained(wide_llama_dir, dtype=torch.bfloat16, quantization_config=config)
    packed = logits(model, ids)
    keep_layout(model)
    assert not any(
        getattr(m.weight.quant_state, "packing_format_for_cpu", False)
        for m in model.modules()
        if isinstance(m, Linear4bit)
    )
    unpacked = logits(model, ids)
    assert (packed - unpacked).abs().max() <= 0.02 * packed.abs().max()
    adapted = randomize(peftkit.attach(model, peftkit.LoraConfig(r=8)))
    assert errors(gradients(adapted, ids), reference(adapted, ids)).max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_dequantised_weight_is_the_one_that_the_layer_computes_with(llama_dir, kind):
    model = peftkit.load_backbone(llama_dir, quantization=kind)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert quantization_of(layer) == kind == model_quantization(model)
    x = torch.eye(64, dtype=torch.bfloat16)
    with torch.no_grad():
        found = layer.train()(x).float().T
    assert torch.allclose(found, dequantized_weight(layer).float(), rtol=1e-2, atol=1e-4)
