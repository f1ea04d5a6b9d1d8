"""`peftkit inspect`: from a config alone, quickly, and true."""

import pytest
from transformers import AutoConfig, LlamaConfig

import peftkit
from peftkit.adapters.inspection import describe, empty_model
from peftkit.cli import main
from peftkit.errors import BackboneError, TargetError
from peftkit.methods.method import variants
from tests.architectures import ARCHITECTURES
from tests.contract import REFUSED


@pytest.mark.parametrize(
    "name", ["llama", "qwen3_next", "mixtral", "jamba", "bert", "t5", "vit", "resnet", "whisper"]
)
def test_what_it_says_of_parameters_is_what_attaching_to_the_real_model_does(name, tmp_path):
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    text = describe(empty_model(str(tmp_path)))
    for method, variant in variants().items():
        config = variant.shown()
        line = next(line for line in text.splitlines() if line.startswith(variant.label))
        if (method, name) in REFUSED:
            with pytest.raises(TargetError) as caught:
                peftkit.attach(model, config)
            assert line.endswith(str(caught.value))
            continue
        adapted = peftkit.attach(model, config)
        trained = sum(
            parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
        )
        shown = line.removeprefix(variant.label).split()
        digits, unit = float(shown[0]), {"k": 1e3, "M": 1e6}.get(shown[1], 1)
        assert digits * unit == pytest.approx(trained, rel=0.006)
        peftkit.detach(adapted)


def test_a_hybrid_is_folded_by_the_kinds_of_its_blocks(tmp_path):
    config = AutoConfig.for_model("qwen3_next", architectures=["Qwen3NextForCausalLM"])
    config.save_pretrained(tmp_path)
    text = describe(empty_model(str(tmp_path)))
    assert "├─ blocks 0-2, 4-6," in text
    assert (
        "self_attn  attention, 16 heads, 2 key-value heads of 256, writes through self_attn.o_proj"
        in text
    )
    assert "512 experts, fused, router gate" in text
    assert "LoRA leaves alone   model.layers.*.mlp.experts.gate_up_proj" in text


def test_seventy_billion_parameters_need_no_weights(tmp_path, capsys):
    sizes = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
    LlamaConfig(vocab_size=128256, num_key_value_heads=8, **sizes).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path / "config.json")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("LlamaForCausalLM, 70.6 G parameters")
    assert "model.layers  80 x LlamaDecoderLayer, 8192 wide" in text
    assert "207 M (0.29 %)   560 places" in text
    assert "prefix, 30 tokens                    4.92 M (0.01 %)  80 places: self_attn" in text


def test_what_cannot_be_built_is_one_sentence(tmp_path):
    with pytest.raises(BackboneError, match="cannot build"):
        empty_model(str(tmp_path / "nothing"))
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(
        BackboneError, match="no image-classification model of type llama; name another task"
    ):
        empty_model(str(tmp_path), "image-classification")
