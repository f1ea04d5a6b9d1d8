import copy
import dataclasses

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

import peftkit
from benchmarks import zoo
from peftkit.errors import AdapterFileError, ConfigError, TargetError
from peftkit.forwards import unwrap_forward, wrap_forward
from peftkit.methods.prefix.config import PrefixConfig
from peftkit.methods.prefix.layer import PrefixLayer, attend
from tests.architectures import ARCHITECTURES
from tests.conftest import llama_config, logits
from tests.contract import frozen

TOKENS = 3
CONFIG = PrefixConfig(num_virtual_tokens=TOKENS)
PROJECTED = PrefixConfig(num_virtual_tokens=TOKENS, prefix_projection=True, encoder_hidden_size=8)
WITHOUT_ATTENTION = ["mamba2", "convnext", "resnet"]
WITH_ATTENTION = [name for name in ARCHITECTURES if name not in WITHOUT_ATTENTION]
DECODERS = [
    "llama",
    "gemma3",
    "gpt2",
    "falcon",
    "bloom",
    "gpt_oss",
    "deepseek_v3",
    "jamba",
    "qwen3_next",
]
from_peft = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def random_prefix(model, seed=1, scale=1.0):
    """Give every prefix values that make a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prefix_" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def attached(name, config=CONFIG):
    model = ARCHITECTURES[name].model()
    return random_prefix(peftkit.attach(model, config)).eval()


def output(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def layers(model):
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]


# The function


def gaps(backbone, batch):
    """Return, for each attention, how far what enters its output projection is from the prefix's
    values.

    With huge keys k and -k all weight is on the prefix whatever the mask, so that this is nothing
    if every query of every head sees its own prefix.
    """
    model, seen = peftkit.attach(backbone, PrefixConfig(num_virtual_tokens=2)).eval(), {}

    def watch(site, wanted):
        def look(module, inputs):
            if (
                inputs
                and isinstance(inputs[0], torch.Tensor)
                and inputs[0].shape[-1] == wanted.numel()
            ):
                gap = (inputs[0] - wanted).abs().amax(-1)
                seen[site] = min(seen.get(site, 9.0), float(gap.max()))

        return look

    for layer in layers(model):
        site = layer.site
        key, value = (
            torch.randn(site.groups, 1, site.key_width),
            torch.randn(site.groups, 1, site.value_width),
        )
        with torch.no_grad():
            layer.prefix_key["default"].copy_(torch.cat([key, -key], 1) * 1e7)
            layer.prefix_value["default"].copy_(value.expand(-1, 2, -1))
        wanted = value[:, 0].repeat_interleave(site.heads // site.groups, 0).flatten()
        parts = {*backbone.get_submodule(site.name).modules()}
        for module in parts.union(backbone.get_submodule(site.name.rpartition(".")[0]).modules()):
            if hasattr(module, "weight"):
                module.register_forward_pre_hook(watch(site.name, wanted))
    with torch.no_grad():
        backbone(**batch)
    assert len(seen) == len(layers(model))
    return seen


# These multiply the output by a gate, have no layer for the projection, or towers that text alone
# does not reach.
GATED = ["qwen3_next", "xlnet", "clip", "llava"]


@pytest.mark.parametrize("name", [name for name in WITH_ATTENTION if name not in GATED])
def test_every_query_of_every_head_attends_to_the_prefix(name):
    architecture = ARCHITECTURES[name]
    padding = "left" if architecture.inputs == "text" else "none"
    found = gaps(architecture.model(), architecture.batch(labels=False, padding=padding))
    assert max(found.values()) < 1e-3, found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "pair",
    [
        *[
            ("causal-lm", name)
            for name in [
                "gpt_neo",
                "gptj",
                "codegen",
                "gpt_bigcode",
                "mpt",
                "openai-gpt",
                "prophetnet",
                "big_bird",
            ]
        ],
        *[
            ("sequence-classification", name)
            for name in ["deberta", "funnel", "mpnet", "rembert", "canine", "perceiver"]
        ],
        *[("seq2seq-lm", name) for name in ("led", "pegasus_x", "longt5", "fsmt")],
        *[
            ("image-classification", name)
            for name in ("hiera", "pvt", "cvt", "mobilevit", "imagegpt")
        ],
    ],
    ids=lambda pair: pair[1],
)
def test_a_prefix_takes_part_in_attention_that_models_compute_step_by_step(pair):
    specimen = zoo.build(*pair)
    found = gaps(specimen.model, specimen.batch(labels=False))
    assert max(found.values()) < 1e-3, found


def test_a_prefix_takes_part_in_both_block_sparse_and_full_attention_of_bigbird():
    sizes = {
        "vocab_size": 90,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = BigBirdConfig(**sizes, block_size=4, num_random_blocks=2, max_position_embeddings=128)
    ids = torch.randint(3, 80, (2, 64))
    assert max(gaps(BigBirdForSequenceClassification(config), {"input_ids": ids}).values()) < 1e-3
    assert (
        max(gaps(BigBirdForSequenceClassification(config), {"input_ids": ids[:, :8]}).values())
        < 1e-3
    )


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_a_prefix_changes_the_output_trains_every_parameter_and_can_be_detached(name):
    architecture = ARCHITECTURES[name]
    model = attached(name)
    batch = architecture.batch(labels=False)
    backbone = frozen(architecture.model())
    assert not torch.equal(output(model, batch), output(backbone, batch))
    with model.disable_adapter():
        assert torch.equal(output(model, batch), output(backbone, batch))
    model(**architecture.batch()).loss.backward()
    idle = [
        layer.site.name for layer in layers(model) if layer.prefix_value["default"].grad is None
    ]
    assert (
        all("vision" in site for site in idle) or not idle
    )  # the text-only inputs of a model that also sees
    for layer in layers(model):
        if layer.site.name not in idle:
            for parameter in layer.parameters():
                assert torch.isfinite(parameter.grad).all()
                assert parameter.grad.abs().sum() > 0
    assert torch.equal(output(frozen(peftkit.detach(model)), batch), output(backbone, batch))
    assert not any(isinstance(module, BaseTunerLayer) for module in backbone.modules())


@pytest.mark.parametrize(
    "name",
    ["llama", "gemma3", "phi", "mixtral", "deepseek_v3", "jamba", "bert", "bart", "vit", "t5"],
)
def test_a_prefix_computes_the_same_in_eager_and_sdpa_attention(name):
    architecture, outputs = ARCHITECTURES[name], []
    if name == "deepseek_v3":
        architecture = dataclasses.replace(
            architecture, settings=architecture.settings | {"num_key_value_heads": 4}
        )
    for kind in ("eager", "sdpa"):
        model = architecture.model()
        model.set_attn_implementation(kind)
        model = random_prefix(peftkit.attach(model, CONFIG)).eval()
        outputs.append(
            output(
                model,
                architecture.batch(labels=False, padding="none" if name == "vit" else "right"),
            )
        )
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_with_a_prefix_no_mask_equals_a_mask_of_ones_and_attention_stays_causal(name):
    batch = ARCHITECTURES[name].batch(labels=False)
    model = attached(name)
    expected = output(model, batch)
    torch.testing.assert_close(
        output(model, {"input_ids": batch["input_ids"]}), expected, atol=1e-5, rtol=1e-4
    )
    changed = batch["input_ids"].clone()
    changed[:, 3] = (changed[:, 3] + 7) % 80 + 4
    difference = (output(model, batch | {"input_ids": changed}) - expected).abs().amax((0, 2))
    assert difference[:3].max() < 1e-6
    assert difference[3:].min() > 1e-6


@pytest.mark.parametrize("name", [*DECODERS, "t5", "bart", "whisper"])
def test_a_prefix_generates_the_same_with_and_without_a_cache(name):
    model = attached(name)
    batch = ARCHITECTURES[name].batch(
        labels=False, padding="left" if name in DECODERS and name != "qwen3_next" else "none"
    )
    batch.pop("decoder_input_ids", None)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached, computed = (
        model.generate(**batch, **settings, use_cache=cache) for cache in (True, False)
    )
    assert torch.equal(cached, computed)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_prefix_generates_with_a_static_cache_and_with_beams(name):
    model, batch = attached(name), ARCHITECTURES[name].batch(labels=False)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**batch, **settings)
    assert torch.equal(model.generate(**batch, **settings, cache_implementation="static"), expected)
    beams = [
        model.generate(**batch, **settings, num_beams=3, use_cache=cache) for cache in (True, False)
    ]
    assert torch.equal(*beams)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gpt2", "bloom", "bert-token", "deberta-v2-token"]
)
def test_padding_changes_no_real_token_beside_a_prefix(name, side):
    model = attached(name)
    ids = ARCHITECTURES[name].batch(labels=False)["input_ids"]
    padding, positions = torch.full((2, 3), 5), torch.arange(ids.shape[1]).expand(2, -1)
    order = (
        (lambda a, b: torch.cat([a, b], 1))
        if side == "left"
        else (lambda a, b: torch.cat([b, a], 1))
    )
    batch = {
        "input_ids": order(padding, ids),
        "attention_mask": order(torch.zeros_like(padding), torch.ones_like(ids)),
    }
    if (
        name != "bloom"
    ):  # as generate does: where positions are not relative, they count real tokens
        batch["position_ids"] = order(torch.zeros_like(padding), positions)
    real = slice(3, None) if side == "left" else slice(0, -3)
    torch.testing.assert_close(
        output(model, batch)[:, real], output(model, {"input_ids": ids}), atol=1e-5, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert", "t5", "deberta-v2"])
def test_gradient_checkpointing_gives_a_prefix_the_same_gradients(name, reentrant):
    batch, gradients = ARCHITECTURES[name].batch(), []
    for checkpointing in (False, True):
        architecture = ARCHITECTURES[name]
        if name == "t5":  # its attention calls dropout as a function
            architecture = dataclasses.replace(
                architecture, settings=architecture.settings | {"dropout_rate": 0.0}
            )
        model = random_prefix(peftkit.attach(architecture.model(), CONFIG))
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(**batch).loss.backward()
        gradients.append(
            [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        )
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


def test_a_prefix_takes_part_in_the_local_and_global_attention_of_longformer():
    model = attached("longformer")
    batch = ARCHITECTURES["longformer"].batch(labels=False)
    batch["global_attention_mask"] = torch.zeros_like(batch["input_ids"])
    batch["global_attention_mask"][0, :2] = 1
    batch["global_attention_mask"][1, 0] = 1
    expected = output(model, batch)
    with model.disable_adapter():
        assert not torch.allclose(output(model, batch), expected)
    wide = ARCHITECTURES["longformer"].batch(labels=False) | {
        "global_attention_mask": torch.ones_like(batch["input_ids"])
    }
    assert torch.isfinite(output(model, wide)).all()


# PEFT's own


def peft_twin(backbone, values):
    """Return PEFT's prefix tuning of a backbone with values of our prefix: [layers][2][groups, n,
    width].
    """
    model = peft.get_peft_model(
        backbone, peft.PrefixTuningConfig(num_virtual_tokens=TOKENS, task_type="CAUSAL_LM")
    )
    flat = (
        torch.stack([torch.stack(pair) for pair in values])
        .permute(3, 0, 1, 2, 4)
        .reshape(TOKENS, -1)
    )
    model.prompt_encoder["default"].embedding.weight.data.copy_(flat)
    return model.eval()


@from_peft
def test_a_prefix_computes_what_pefts_computes_where_positions_agree(ids):
    """GPT-2's learned positions: PEFT moves the real tokens by the length of the prefix, which must
    be asked for here.
    """
    torch.manual_seed(0)
    backbone = GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).eval()
    model = random_prefix(peftkit.attach(copy.deepcopy(backbone), CONFIG)).eval()
    values = [
        (layer.prefix_key["default"].data, layer.prefix_value["default"].data)
        for layer in layers(model)
    ]
    expected = logits(peft_twin(backbone, values), ids)
    moved = {"input_ids": ids, "position_ids": torch.arange(TOKENS, TOKENS + ids.shape[1])[None]}
    torch.testing.assert_close(output(model, moved), expected, atol=1e-5, rtol=1e-4)


@from_peft
@pytest.mark.parametrize("rope", [None, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}])
def test_a_prefix_trained_by_peft_loads_on_rotary_decoders(ids, tmp_path, rope):
    torch.manual_seed(0)
    options = {"rope_parameters": rope | {"original_max_position_embeddings": 64}} if rope else {}
    backbone = LlamaForCausalLM(llama_config(**options)).eval()
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=TOKENS, task_type="CAUSAL_LM", prefix_projection=True
    )
    theirs = peft.get_peft_model(copy.deepcopy(backbone), config).eval()
    theirs.save_pretrained(tmp_path)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        expected = [theirs(ids).logits, theirs(ids, attention_mask=mask).logits[mask.bool()]]
    loaded = peftkit.load(backbone, tmp_path)
    with torch.no_grad():
        found = [loaded(ids).logits, loaded(ids, attention_mask=mask).logits[mask.bool()]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected[0], logits(peftkit.detach(loaded), ids), atol=1e-3)


@from_peft
@pytest.mark.parametrize(
    ("name", "why"),
    [("gpt2", "not rotary"), ("gemma3", "window"), ("t5", "decoder's self-attention alone")],
)
def test_a_prefix_of_peft_that_would_compute_something_else_is_refused(name, why, tmp_path):
    model = ARCHITECTURES[name].model()
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    peft.get_peft_model(
        copy.deepcopy(model), peft.PrefixTuningConfig(num_virtual_tokens=2, task_type=task)
    ).save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match=why):
        peftkit.load(model, tmp_path)


# Life in PEFT


@from_peft
@pytest.mark.parametrize("config", [CONFIG, PROJECTED], ids=["plain", "projected"])
def test_a_prefix_is_saved_and_loaded_bit_for_bit(any_backbone, ids, tmp_path, config):
    model = random_prefix(peftkit.attach(any_backbone, config), scale=0.3)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    expected = logits(model, ids)
    peftkit.save(model, tmp_path / "adapter")
    loaded = peftkit.load(peftkit.detach(model), tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(layer.prefix_projection for layer in layers(loaded))
    peftkit.save(loaded, tmp_path / "folded")
    again = peft.PeftModel.from_pretrained(peftkit.detach(loaded), tmp_path / "folded")
    assert torch.equal(logits(again, ids), expected)


def test_a_prefix_projection_is_saved_with_its_network_and_can_be_trained_further(
    backbone, ids, tmp_path
):
    model = random_prefix(peftkit.attach(backbone, PROJECTED), scale=0.3)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert any("prefix_projection" in name for name in trained)
    peftkit.save(model, tmp_path)
    loaded = peftkit.load(peftkit.detach(model), tmp_path, trainable=True)
    again = {name: p.detach() for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained.keys() == again.keys()
    assert all(torch.equal(trained[name], again[name]) for name in trained)


def test_several_active_prefixes_are_concatenated(ids):
    model = attached("llama")
    model.add_adapter("second", PrefixConfig(num_virtual_tokens=2))
    random_prefix(model, seed=2)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model, ids % 90)
    joined = attached("llama", PrefixConfig(num_virtual_tokens=TOKENS + 2))
    for layer, pair in zip(layers(joined), layers(model), strict=True):
        for kind in ("prefix_key", "prefix_value"):
            values = getattr(pair, kind)
            getattr(layer, kind)["default"].data = torch.cat(
                [values["default"], values["second"]], dim=1
            ).data
    torch.testing.assert_close(both, logits(joined, ids % 90))
    model.set_adapter("second")
    assert [
        name for name, p in model.named_parameters() if p.requires_grad and "default" in name
    ] == []
    model.delete_adapter("default")
    assert all(list(layer.prefix_key) == ["second"] for layer in layers(model))
    assert torch.isfinite(logits(model, ids % 90)).all()


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_sixteen_bit_backbones_train_a_prefix_in_float32(kind):
    backbone = ARCHITECTURES["llama"].model().to(torch.bfloat16)
    backbone.set_attn_implementation(kind)
    model = random_prefix(peftkit.attach(backbone, CONFIG))
    batch = ARCHITECTURES["llama"].batch()
    model(**batch).loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert output(model, batch).dtype == torch.bfloat16


def test_a_copied_prefix_model_is_independent_and_unload_returns_the_backbone(ids):
    ids = ids % 90
    model = attached("llama")
    expected = logits(model, ids)
    copied = copy.deepcopy(model)
    random_prefix(model, seed=5)
    assert torch.equal(logits(copied, ids), expected)
    assert torch.equal(logits(copied.unload(), ids), logits(ARCHITECTURES["llama"].model(), ids))


def test_a_prefix_cannot_be_merged(backbone):
    model = peftkit.attach(backbone, CONFIG)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ConfigError, match="not weights, and cannot be merged"):
            merge()


def test_adapter_names_are_refused_for_a_prefix_and_not_ignored(backbone, ids):
    with pytest.raises(ConfigError, match=r"adapter_names needs LoRA adapters alone.*set_adapter"):
        peftkit.attach(backbone, CONFIG)(ids, adapter_names=["default", "default"])


def test_transformers_loads_a_prefix_by_itself(backbone, ids, tmp_path):
    model = random_prefix(peftkit.attach(backbone, CONFIG))
    expected = logits(model, ids)
    peftkit.save(model, tmp_path)
    backbone = peftkit.detach(model)
    backbone.load_adapter(str(tmp_path))
    assert torch.equal(logits(backbone, ids), expected)


def test_lora_and_a_prefix_share_a_model_and_are_saved_separately(tmp_path):
    batch = ARCHITECTURES["llama"].batch(labels=False)
    configs = {"low_rank": peftkit.LoraConfig(r=2), "virtual": CONFIG}
    model = ARCHITECTURES["llama"].model()
    for name, config in configs.items():
        model = peftkit.attach(model, config, name=name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    expected = output(model.eval(), batch)
    for name in configs:
        peftkit.save(model, tmp_path / name, name=name)
    loaded = peftkit.detach(model)
    for name in reversed(configs):
        loaded = peftkit.load(loaded, tmp_path / name, name=name)
    assert torch.equal(output(loaded, batch), expected)


# What is asked of the user


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_a_model_without_attention_is_refused_for_a_prefix(name):
    with pytest.raises(
        TargetError,
        match="no attention that a prefix could join: none of its layers computes attention",
    ):
        peftkit.attach(ARCHITECTURES[name].model(), CONFIG)


def test_hybrid_models_get_a_prefix_in_the_attention_layers_that_the_record_names():
    model = attached("jamba")
    assert [layer.site.name for layer in layers(model)] == peftkit.record(model)["attach"][
        "targets"
    ]
    assert len(layers(model)) == 1


def test_the_kind_of_attention_that_gets_a_prefix_can_be_chosen():
    def kinds(**options):
        model = peftkit.attach(
            ARCHITECTURES["t5"].model(), PrefixConfig(num_virtual_tokens=1, **options)
        )
        return [layer.site.kind for layer in layers(model)]

    assert (kinds().count("self"), kinds().count("cross")) == (4, 2)
    assert kinds(attention="cross") == ["cross"] * 2
    assert kinds(attention="self", layers_to_transform=[1]) == ["self"] * 2
    assert kinds(target_modules=["EncDecAttention"]) == ["cross"] * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_virtual_tokens": 0},
            ConfigError,
            "num_virtual_tokens is 0; it must be a whole number of at least 1",
        ),
        (
            {"num_virtual_tokens": 2.0, "init_std": -1, "attention": "both"},
            ConfigError,
            "2.0.*init_std is -1.*'both'",
        ),
        ({"prefix_dropout": 1.0}, ConfigError, "prefix_dropout is 1.0"),
        ({"prefix_projection": "yes"}, ConfigError, "prefix_projection is 'yes'"),
        (
            {"target_modules": ["self_atn"]},
            TargetError,
            "'self_atn' is no attention .*did you mean 'self_attn'",
        ),
        ({"target_modules": ["mlp"]}, TargetError, "'mlp' is no attention"),
        (
            {"attention": "cross"},
            TargetError,
            "no attention that attention='cross'.*it has model.layers",
        ),
        ({"layers_to_transform": [7]}, TargetError, r"names layer 7"),
        ({"modules_to_save": ["lm_haed"]}, TargetError, "did you mean 'lm_head'"),
    ],
)
def test_an_impossible_prefix_config_is_refused_in_one_sentence(backbone, options, error, message):
    with pytest.raises(error, match=message):
        peftkit.attach(backbone, PrefixConfig(**options))
    assert not layers(backbone)


def test_an_attention_kernel_without_a_prefix_is_refused_at_attach_and_in_the_forward_pass(
    backbone, ids
):
    backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        TargetError, match=r"computes attention with flash_attention_2.*attn_implementation='sdpa'"
    ):
        peftkit.attach(backbone, CONFIG)
    backbone.config._attn_implementation = "sdpa"
    model = peftkit.attach(backbone, CONFIG)
    attention = backbone.model.layers[1].self_attn
    unwrap_forward(attention, "prefix")
    attention.forward = lambda **kwargs: (kwargs["hidden_states"], None)
    wrap_forward(attention, attend, "prefix")
    with pytest.raises(
        TargetError,
        match=r"prefix of model.layers.1.self_attn could not join.*attn_implementation='sdpa'",
    ):
        logits(model, ids)


def test_a_damaged_prefix_length_is_refused_before_memory_is_allocated(backbone, tmp_path):
    peftkit.save(peftkit.attach(backbone, CONFIG), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(
        file.read_text().replace(
            f'"num_virtual_tokens": {TOKENS}', f'"num_virtual_tokens": {10**12}'
        )
    )
    with pytest.raises(
        AdapterFileError, match="num_virtual_tokens is 1000000000000, but no weight"
    ):
        peftkit.load(backbone, tmp_path)
