import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, LlamaForCausalLM

import peftkit
from peftkit.adapters.combining import combine
from peftkit.cli import main
from peftkit.errors import AdapterFileError, BaseMismatchError, ConfigError
from peftkit.files import read_tensors
from peftkit.methods.peft_registry import quiet_peft
from tests.conftest import llama_config, logits, randomize


def backbone(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(**changes))


def adapter(path, config, seed, model=None):
    model = peftkit.attach(backbone() if model is None else model, config)
    torch.manual_seed(seed)
    peftkit.save(randomize(model), path)
    return path


def weights(path, dtype=torch.float64):
    """The weights of the merged model, computed in float64 from the files."""
    merged = peftkit.merge(peftkit.load(backbone(), path), torch.float32)
    return {name: value.to(dtype) for name, value in merged.state_dict().items()}


def updates(path):
    plain = backbone().state_dict()
    return {name: value - plain[name].double() for name, value in weights(path).items()}


def change_config(path, changes):
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


VARIETIES = [
    ({"r": 4}, {"r": 8, "lora_alpha": 5}),
    (
        {"r": 4, "use_rslora": True},
        {"r": 2, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 32}},
    ),
    (
        {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        {"r": 2, "target_modules": ["up_proj", "v_proj"]},
    ),
    (
        {"r": 4, "target_modules": ["q_proj"]},
        {"r": 2, "target_modules": r".*layers\.1\.mlp\.up_proj"},
    ),
    (
        {"r": 4, "layers_to_transform": [0], "target_modules": ["q_proj"]},
        {"r": 2, "target_modules": ["v_proj"]},
    ),
    (
        {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 2, "target_modules": ["embed_tokens"]},
    ),
]


@pytest.mark.parametrize(("one", "other"), VARIETIES)
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.7, -1.3)])
def test_the_update_of_the_sum_is_the_sum_of_the_updates(tmp_path, one, other, factors):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(**one), 1)
    b = adapter(tmp_path / "b", peftkit.LoraConfig(**other), 2)
    combine({a: factors[0], b: factors[1]}, tmp_path / "sum")
    first, second, found = updates(a), updates(b), updates(tmp_path / "sum")
    for name, value in found.items():
        expected = factors[0] * first[name] + factors[1] * second[name]
        assert torch.allclose(value, expected, atol=1e-6), name
    assert any(value.abs().max() > 1e-3 for value in found.values())


def test_the_sum_is_plain_lora_that_peft_loads(tmp_path, ids):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4, use_rslora=True), 1)
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=8), 2)
    combine({a: 1.0, b: -0.5}, tmp_path / "sum")
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (12, 12, False)
    ours = logits(peftkit.load(backbone(), tmp_path / "sum"), ids)
    with quiet_peft():
        theirs = logits(PeftModel.from_pretrained(backbone(), tmp_path / "sum"), ids)
    assert torch.allclose(ours, theirs, atol=1e-6)
    tensors = read_tensors(
        tmp_path / "sum" / "adapter_model.safetensors"
    )  # has a digest, which is checked
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_an_adapter_minus_itself_is_the_backbone(tmp_path, ids):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    b = shutil.copytree(a, tmp_path / "b")
    combine({a: 1.0, b: -1.0}, tmp_path / "zero")
    assert torch.allclose(
        logits(peftkit.load(backbone(), tmp_path / "zero"), ids), logits(backbone(), ids), atol=1e-5
    )


def test_weights_are_normalised_on_request(tmp_path):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 2)
    combine({a: 1.0, b: 3.0}, tmp_path / "one", normalize=True)
    combine({a: 0.25, b: 0.75}, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in two)


def test_adalora_is_added_up_once_it_is_exported(tmp_path):
    model = peftkit.attach(backbone(), peftkit.AdaLoraConfig(init_r=4, target_r=2, total_step=10))
    peftkit.save(randomize(model), tmp_path / "ada")
    peftkit.export_lora(model, tmp_path / "a")
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 2)
    combine({tmp_path / "a": 0.5, b: 2.0}, tmp_path / "sum")
    first, second, found = updates(tmp_path / "a"), updates(b), updates(tmp_path / "sum")
    assert all(
        torch.allclose(found[name], 0.5 * first[name] + 2 * second[name], atol=1e-6)
        for name in found
    )
    with pytest.raises(ConfigError, match=r"ADALORA adapter.*peftkit\.export_lora first"):
        combine({tmp_path / "ada": 1.0}, tmp_path / "out")


def classifier():
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64))


def test_heads_are_averaged_beside_summed_updates(tmp_path):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1, classifier())
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 2, classifier())
    combine({a: 2.0, b: 6.0}, tmp_path / "sum")
    peftkit.load(classifier(), tmp_path / "sum")
    one, two, found = (
        load_file(path / "adapter_model.safetensors") for path in (a, b, tmp_path / "sum")
    )
    key = "base_model.model.classifier.weight"
    assert torch.allclose(found[key], 0.25 * one[key] + 0.75 * two[key])
    with pytest.raises(
        ConfigError,
        match="heads and biases, which are averaged, cannot be normalised: they sum to 0",
    ):
        combine({a: 1.0, b: -1.0}, tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        lambda: peftkit.BottleneckConfig(reduction_factor=8),
        lambda: peftkit.PrefixConfig(num_virtual_tokens=4),
        lambda: peftkit.LoraConfig(r=4, use_dora=True),
        lambda: peftkit.AdaLoraConfig(init_r=4, target_r=2, total_step=10),
    ],
)
def test_a_soup_is_the_mean_of_every_parameter(tmp_path, config):
    a, b = adapter(tmp_path / "a", config(), 1), adapter(tmp_path / "b", config(), 2)
    combine({a: 1.0, b: 3.0}, tmp_path / "soup", how="parameters")
    one, two, found = (
        load_file(path / "adapter_model.safetensors") for path in (a, b, tmp_path / "soup")
    )
    assert found.keys() == one.keys()
    for key, value in found.items():
        assert torch.equal(value, (0.25 * one[key].double() + 0.75 * two[key].double()).float())
    peftkit.load(backbone(), tmp_path / "soup")


@pytest.mark.parametrize("how", ["update", "parameters"])
def test_different_methods_and_backbones_are_refused(tmp_path, how):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    b = adapter(tmp_path / "b", peftkit.BottleneckConfig(), 1)
    wide = adapter(tmp_path / "w", peftkit.LoraConfig(r=4), 1, backbone(hidden_size=32))
    other = LlamaForCausalLM(llama_config())  # another draw
    c = adapter(tmp_path / "c", peftkit.LoraConfig(r=4), 1, other)
    with pytest.raises(ConfigError, match=r"is a LORA adapter, and .* a BOTTLENECK adapter"):
        combine({a: 1, b: 1}, tmp_path / "out", how=how)
    with pytest.raises(BaseMismatchError, match=r"a backbone with hidden_size 64, and .* with 32"):
        combine({a: 1, wide: 1}, tmp_path / "out", how=how)
    with pytest.raises(AdapterFileError, match="shape"):
        combine({a: 1, wide: 1}, tmp_path / "out", how=how, verify_backbone=False)
    with pytest.raises(
        BaseMismatchError, match="same shape with different weights; pass verify_backbone=False"
    ):
        combine({a: 1, c: 1}, tmp_path / "out", how=how)
    assert not (tmp_path / "out").exists()
    combine({a: 1, c: 1}, tmp_path / "out", how=how, verify_backbone=False)


def test_without_a_fingerprint_the_names_of_the_backbones_count(tmp_path):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 2)
    for path, name in ((a, "org/one"), (b, "org/two")):
        change_config(path, {"base_model_name_or_path": name})
        save_file(load_file(path / "adapter_model.safetensors"), path / "adapter_model.safetensors")
    with pytest.raises(BaseMismatchError, match=r"names the backbone org/one, and .* org/two"):
        combine({a: 1, b: 1}, tmp_path / "out")
    combine({a: 1, b: 1}, tmp_path / "out", verify_backbone=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "has use_dora=True, so that its update is not B A alone"),
        ({"lora_bias": True}, "has lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
    ],
)
def test_variants_of_lora_are_not_added_up(tmp_path, options, message):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    change_config(a, options)
    with pytest.raises(ConfigError, match=message):
        combine({a: 1}, tmp_path / "out")


def test_bottlenecks_are_not_added_up_and_different_scales_not_averaged(tmp_path):
    a = adapter(tmp_path / "a", peftkit.BottleneckConfig(), 1)
    with pytest.raises(
        ConfigError, match="is a BOTTLENECK adapter, whose update cannot be added up"
    ):
        combine({a: 1}, tmp_path / "out")
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 1)
    c = adapter(tmp_path / "c", peftkit.LoraConfig(r=4, lora_alpha=5, use_rslora=True), 1)
    with pytest.raises(ConfigError, match="differ in lora_alpha, use_rslora, so that the mean"):
        combine({b: 1, c: 1}, tmp_path / "out", how="parameters")
    d = adapter(tmp_path / "d", peftkit.LoraConfig(r=4, target_modules=["q_proj"]), 1)
    with pytest.raises(AdapterFileError, match="None: it is missing there"):
        combine({b: 1, d: 1}, tmp_path / "out", how="parameters")


def test_arguments_are_checked(tmp_path):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 2)
    for weight in (0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be a finite number, and not 0"):
            combine({a: weight}, tmp_path / "out")
    with pytest.raises(ConfigError, match="is one of the adapters"):
        combine({a: 1, b: 1}, tmp_path / "b")
    with pytest.raises(ConfigError, match="no adapter"):
        combine({}, tmp_path / "out")
    with pytest.raises(ConfigError, match="how is 'sum'"):
        combine({a: 1}, tmp_path / "out", how="sum")
    with pytest.raises(ConfigError, match="the weights cannot be normalised: they sum to 0"):
        combine({a: 1, b: -1}, tmp_path / "out", how="parameters")
    with pytest.raises(AdapterFileError, match=r"cannot read .*nowhere"):
        combine({tmp_path / "nowhere": 1}, tmp_path / "out")


def test_combining_from_the_command_line(tmp_path, capsys):
    a = adapter(tmp_path / "a", peftkit.LoraConfig(r=4), 1)
    b = adapter(tmp_path / "b", peftkit.LoraConfig(r=4), 2)
    assert main(["combine", str(a), f"{b}:-0.5", "--output", str(tmp_path / "sum")]) == 0
    combine({a: 1.0, b: -0.5}, tmp_path / "expected")
    found, expected = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sum", "expected")
    )
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "1 x " in capsys.readouterr().out
    assert main(["combine", str(a), str(a), "--output", str(tmp_path / "sum")]) == 2
    assert "is named twice" in capsys.readouterr().err
