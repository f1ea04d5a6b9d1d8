import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

import peftkit
from peftkit.errors import ConfigError, NonFiniteError
from tests.conftest import logits, randomize


@pytest.mark.parametrize("quantization", [None, "nf4", "fp4", "int8"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 32}},
    ],
)
def test_a_float32_merge_computes_what_the_adapted_model_computes(
    llama_dir, ids, quantization, options
):
    """In float32 throughout, so that only the merge itself can differ; int8 activations are rounded
    and so compared loosely.
    """
    if quantization == "int8" and "use_dora" in options:
        pytest.skip("PEFT cannot compute DoRA on int8 layers on a CPU")
    backbone = peftkit.load_backbone(llama_dir, quantization=quantization, dtype=torch.float32)
    model = randomize(peftkit.attach(backbone, peftkit.LoraConfig(r=4, **options)))
    merged = peftkit.merge(model, torch.float32, probe={"input_ids": ids})
    report = peftkit.record(merged)["merge"]
    tolerance = 5e-2 if quantization == "int8" else 1e-4
    assert report["largest_logit_difference"] <= tolerance * report["largest_logit"]
    measured = (logits(merged, ids) - logits(model, ids)).abs().max()
    assert float(measured) == pytest.approx(report["largest_logit_difference"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_merged_model_is_a_plain_model_that_saves_and_reloads(llama_dir, tmp_path, ids, dtype):
    model = randomize(
        peftkit.attach(
            peftkit.load_backbone(llama_dir, quantization="nf4"), peftkit.LoraConfig(r=4)
        )
    )
    training = model.training
    merged = peftkit.merge(model, dtype)
    assert type(merged) is type(model.get_base_model())
    assert {p.dtype for p in merged.parameters()} == {dtype}
    assert not hasattr(merged.config, "quantization_config")
    assert model.training is training
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(logits(again, ids), logits(merged, ids))


def test_merging_leaves_the_adapted_model_alone(llama_dir, ids):
    model = randomize(
        peftkit.attach(
            peftkit.load_backbone(llama_dir, quantization="nf4"), peftkit.LoraConfig(r=4)
        )
    )
    expected = logits(model, ids)
    peftkit.merge(model)
    assert torch.equal(logits(model, ids), expected)


def test_a_trained_head_conv1d_layers_and_tied_weights_are_merged(ids):
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    classifier = randomize(
        peftkit.attach(BertForSequenceClassification(BertConfig(**sizes)), peftkit.LoraConfig(r=4))
    )
    assert torch.allclose(
        logits(peftkit.merge(classifier, torch.float32), ids), logits(classifier, ids), atol=1e-5
    )
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2))
    model = randomize(peftkit.attach(gpt2, peftkit.LoraConfig(r=4)))
    merged = peftkit.merge(model, torch.float32)
    assert torch.allclose(logits(merged, ids), logits(model, ids), atol=1e-4)
    assert merged.lm_head.weight is merged.transformer.wte.weight


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_conv1d_layers_are_merged_the_right_way_round(tmp_path, ids, quantization):
    """Transformers stores a quantised Conv1D transposed; GPT-2's attention c_proj is square, so
    only its values tell.
    """
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=2)).save_pretrained(
        tmp_path
    )
    backbone = peftkit.load_backbone(tmp_path, quantization=quantization, dtype=torch.float32)
    model = randomize(
        peftkit.attach(backbone, peftkit.LoraConfig(r=4, target_modules=["c_attn", "c_fc"]))
    )
    report = peftkit.record(peftkit.merge(model, torch.float32, probe={"input_ids": ids}))["merge"]
    tolerance = 5e-2 if quantization == "int8" else 1e-4
    assert report["largest_logit_difference"] <= tolerance * report["largest_logit"]


def test_the_merged_model_shares_no_weight_with_the_backbone(backbone):
    merged = peftkit.merge(peftkit.attach(backbone, peftkit.LoraConfig(r=4)))
    theirs = {p.data_ptr() for p in merged.parameters()}
    assert not theirs & {p.data_ptr() for p in backbone.parameters()}


@pytest.mark.filterwarnings("ignore:Model.*tie:UserWarning", "ignore:.*tied:UserWarning")
def test_an_adapted_head_that_was_tied_to_the_embedding_is_untied(tmp_path, ids):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2))
    model = randomize(
        peftkit.attach(gpt2, peftkit.LoraConfig(r=4, target_modules=["c_attn", "lm_head"]))
    )
    merged = peftkit.merge(model, torch.float32)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(again, ids), logits(model, ids), atol=1e-4)


def test_what_cannot_be_merged_is_refused(backbone):
    with pytest.raises(ConfigError, match="no active adapter to merge"):
        peftkit.merge(backbone)
    model = peftkit.attach(backbone, peftkit.LoraConfig(r=4))
    with pytest.raises(ConfigError, match="cannot merge into"):
        peftkit.merge(model, torch.int8)
    randomize(model, 1e3)
    with pytest.raises(NonFiniteError, match="is not finite in"):
        peftkit.merge(model, torch.float16)
