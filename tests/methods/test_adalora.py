"""AdaLoRA's layer, files, merge and export, beside what PEFT 0.21.2 does with the same configs and
files.
"""

import json
import warnings

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adalora import AdaLoraModel
from peft.utils import PeftType
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import peftkit
from peftkit.errors import AdapterFileError, ConfigError, TargetError
from peftkit.files import read_tensors
from peftkit.methods.adalora import layer as adalora
from peftkit.methods.adalora.budget import Allocation
from peftkit.methods.adalora.model import AdaLoraTuner
from peftkit.methods.peft_registry import injecting
from tests.conftest import logits, randomize

from_peft = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SIZES = {"init_r": 6, "target_r": 3, "total_step": 10, "tfinal": 2}


def config(**changes):
    return peftkit.AdaLoraConfig(**(SIZES | {"lora_alpha": 16} | changes))


def attached(backbone, **changes):
    """An adapter with values that make a difference, its singular values included."""
    return randomize(peftkit.attach(backbone, config(**changes)), 0.3)


def losses(model, ids):
    """The loss that the model reports, and its cross-entropy."""
    with torch.no_grad():
        output = model(ids, labels=ids)
    own = nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
    )
    return float(output.loss), float(own)


def prune(model, kept):
    """Keep the triplets that `kept` chooses for each layer, and let the others leave."""
    allocation = Allocation(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), 10
    )
    allocation.kept = [
        kept(number, layer.lora_E["default"])
        for number, layer in enumerate(allocation.layers.values())
    ]
    with torch.no_grad():
        allocation._mask()
    before = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    allocation._prune()
    return before


def every_second(number, values):
    return torch.arange(len(values)) % 2 == number % 2


def all_but_the_first_layer(number, values):
    return torch.full((len(values),), number > 0)


# the layer


def test_a_new_adalora_adapter_is_the_identity_and_float32(any_backbone, ids):
    expected = logits(any_backbone, ids)
    model = peftkit.attach(any_backbone, config(lora_dropout=0.1))
    assert isinstance(model, peft.PeftModel)
    assert model.peft_config["default"].peft_type == PeftType.ADALORA
    assert torch.equal(logits(model, ids), expected)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {name.split(".")[-2] for name in trained} == {"lora_A", "lora_B", "lora_E"}
    assert set(adalora.ranks(model).values()) == {6}


def test_a_disabled_or_detached_adalora_model_is_the_backbone(any_backbone, ids):
    expected = logits(any_backbone, ids)
    model = attached(any_backbone)
    assert not torch.equal(logits(model, ids), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(peftkit.detach(model), ids), expected)


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # PEFT, of the toy
def test_an_adalora_layer_calls_its_base_layer_and_never_touches_the_weight():
    """One class serves every storage; PEFT has one for each, and copies x to float32 for int8."""

    class Doubler(nn.Module):
        in_features, out_features = 8, 8

        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.factor * x

    model = nn.ModuleDict({"layer": Doubler(), "head": nn.Linear(8, 8)})
    with injecting("ADALORA", AdaLoraTuner):
        adapted = peft.get_peft_model(model, config(target_modules=["layer"]))
    layer = randomize(adapted.base_model.model.layer, 0.3)
    x = torch.randn(3, 8)
    expected = 2 * x + x @ layer.get_delta_weight("default").T
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_the_loss_with_adalora_is_the_plain_cross_entropy(llama_dir, ids, quantization):
    """PEFT adds the penalty in training, evaluation and disabled; without a task type, never."""
    model = attached(
        peftkit.load_backbone(llama_dir, quantization=quantization), orth_reg_weight=100.0
    )
    for training in (True, False):
        model.train(training)
        loss, own = losses(model, ids)
        assert loss == pytest.approx(own, rel=1e-3)


def test_training_adalora_without_an_allocation_warns_once(backbone, ids, caplog):
    model = attached(backbone)
    for _ in range(2):
        model(ids)
    assert [record.getMessage()[:29] for record in caplog.records] == [
        "AdaLoRA trains without its bu"
    ]
    with pytest.raises(ConfigError, match="too late for the penalty"):
        model.base_model.update_and_allocate(1)


# files


@pytest.mark.parametrize("kept", [None, every_second, all_but_the_first_layer])
def test_a_saved_adalora_adapter_loads_bit_for_bit(any_backbone, tmp_path, ids, kept):
    """In PEFT, labels on a reloaded adapter are an AttributeError."""
    model = attached(any_backbone, lora_dropout=0.2)
    if kept:
        prune(model, kept)
    expected = logits(model, ids)
    loss = model(ids, labels=ids).loss
    ranks = adalora.ranks(model)
    peftkit.save(model, tmp_path / "adapter")
    backbone = peftkit.detach(model)
    for trainable in (False, True):
        loaded = peftkit.load(backbone, tmp_path / "adapter", trainable=trainable)
        assert torch.equal(logits(loaded, ids), expected)
        assert torch.equal(loaded(ids, labels=ids).loss, loss)
        assert list(adalora.ranks(loaded).values()) == list(ranks.values())
        assert any(p.requires_grad for p in loaded.parameters()) == trainable
        backbone = peftkit.detach(loaded)


@from_peft
@pytest.mark.filterwarnings(
    "ignore:The following rank_pattern keys:RuntimeWarning"
)  # PEFT, of any AdaLoRA file
@pytest.mark.filterwarnings(
    "ignore:Initializing zero-element tensors:UserWarning"
)  # PEFT, for a layer of rank 0
@pytest.mark.parametrize("kept", [None, every_second, all_but_the_first_layer])
def test_plain_peft_reads_our_adalora_file_and_computes_the_same(llama_dir, tmp_path, ids, kept):
    backbone = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    model = attached(backbone)
    if kept:
        prune(model, kept)
    expected = logits(model, ids)
    peftkit.save(model, tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(peftkit.detach(model), tmp_path / "adapter")
    assert type(plain.base_model) is AdaLoraModel
    assert torch.allclose(logits(plain, ids), expected, atol=1e-5)


@from_peft
def test_an_adalora_file_masked_and_saved_by_plain_peft_loads(llama_dir, tmp_path, ids):
    backbone = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    plain = peft.get_peft_model(
        backbone, config(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    randomize(plain, 0.3)
    for step in range(9):
        plain.zero_grad()
        plain(ids, labels=ids).loss.backward()
        plain.base_model.update_and_allocate(step)
    expected = logits(plain, ids)
    plain.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    fresh = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    loaded = peftkit.load(fresh, tmp_path / "adapter")
    assert sum(adalora.ranks(loaded).values()) == 3 * 4
    assert torch.allclose(logits(loaded, ids), expected, atol=1e-5)


def test_pruned_triplets_are_not_in_the_saved_file(backbone, tmp_path, ids):
    """PEFT masks: parameters keep init_r until they are loaded again."""
    model = attached(backbone)
    expected = logits(model, ids)
    before = prune(model, lambda number, values: torch.tensor([True] * 5 + [False]))
    assert not torch.equal(logits(model, ids), expected)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = before[name]
            assert torch.equal(parameter, whole[:, :5] if "lora_B" in name else whole[:5])
    peftkit.save(model, tmp_path)
    assert {
        tensor.shape
        for name, tensor in read_tensors(tmp_path / "adapter_model.safetensors").items()
        if "_E" in name
    } == {(5, 1)}
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["rank_pattern"]["model.layers.0.self_attn.q_proj.lora_E"] == [True] * 5 + [False]


def test_an_adalora_layer_takes_the_ranks_of_a_trainer_checkpoint(backbone, tmp_path, ids):
    """Trainer loads a checkpoint into an existing model; PEFT's layers refuse another rank."""
    model = attached(backbone)
    whole = logits(model, ids)
    model.save_pretrained(tmp_path / "whole", save_embedding_layers=False)
    prune(model, every_second)
    pruned = logits(model, ids)
    model.save_pretrained(tmp_path / "pruned", save_embedding_layers=False)
    for directory, expected, rank in (
        ("whole", whole, 6),
        ("pruned", pruned, 3),
        ("whole", whole, 6),
    ):
        model.load_adapter(tmp_path / directory, "default", is_trainable=True)
        assert torch.equal(logits(model, ids), expected)
        assert set(adalora.ranks(model).values()) == {rank}
        assert (model.peft_config["default"].rank_pattern is None) == (rank == 6)
        assert all(
            p.requires_grad
            for name, p in model.named_parameters()
            if "lora_" in name and "ranknum" not in name
        )


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"init_r": 7}, AdapterFileError, "does not fit"),
        ({"init_r": 10**9}, AdapterFileError, "r is 1000000000"),
        (
            {"rank_pattern": {"nope.lora_E": [True] * 6}},
            ConfigError,
            "names nope.lora_E, which is not a layer",
        ),
        (
            {"rank_pattern": {"model.layers.0.mlp.up_proj.lora_E": [True]}},
            ConfigError,
            "must be a list of init_r = 6",
        ),
        (
            {"rank_pattern": {"model.layers.0.mlp.up_proj.lora_E": [True] + 5 * [False]}},
            AdapterFileError,
            "does not fit",
        ),
        ({"use_rslora": True}, ConfigError, "use_rslora is True, which AdaLoRA has no use for"),
    ],
)
def test_an_adalora_file_that_contradicts_itself_is_refused(
    backbone, tmp_path, fields, error, message
):
    model = attached(backbone)
    peftkit.save(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(error, match=message):
        peftkit.load(peftkit.detach(model), tmp_path / "adapter")


# beside other adapters


@from_peft
def test_adalora_is_trained_beside_an_adapter_of_another_method(backbone, tmp_path, ids):
    model = randomize(peftkit.attach(backbone, peftkit.PrefixConfig(num_virtual_tokens=3)), 0.1)
    expected = logits(model, ids)
    model = peftkit.attach(model, config(tinit=0, tfinal=1), name="second")
    assert torch.equal(logits(model, ids), expected)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    allocation = Allocation(model, optimizer, 4)
    for step in range(1, 5):
        model.train()(ids, labels=ids).loss.backward()
        allocation.before_step()
        optimizer.step()
        allocation.after_step(step)
        optimizer.zero_grad()
    assert sum(adalora.ranks(model, "second").values()) == 3 * 14
    expected = logits(model, ids)
    peftkit.save(model, tmp_path / "first")
    peftkit.save(model, tmp_path / "second", name="second")
    loaded = peftkit.load(peftkit.detach(model), tmp_path / "first")
    loaded = peftkit.load(loaded, tmp_path / "second", name="second")
    assert torch.equal(logits(loaded, ids), expected)


@pytest.mark.filterwarnings(
    "ignore:The following rank_pattern keys:RuntimeWarning"
)  # PEFT, of any AdaLoRA file
def test_several_adalora_adapters_can_be_switched_for_inference(backbone, tmp_path, ids):
    model = attached(backbone)
    first = logits(model, ids)
    peftkit.save(model, tmp_path / "first")
    prune(model, every_second)
    second = logits(model, ids)
    peftkit.save(model, tmp_path / "second")
    loaded = peftkit.load(peftkit.detach(model), tmp_path / "first")
    loaded.load_adapter(tmp_path / "second", "other")
    for name, expected in (("other", second), ("default", first)):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded, ids), expected)


# merging and export


@pytest.mark.parametrize("quantization", [None, "nf4", "fp4", "int8"])
@pytest.mark.parametrize("kept", [None, all_but_the_first_layer])
def test_adalora_merged_in_float32_computes_what_the_adapted_model_computes(
    llama_dir, ids, quantization, kept
):
    """PEFT cannot merge AdaLoRA on a quantised backbone."""
    model = attached(
        peftkit.load_backbone(llama_dir, quantization=quantization, dtype=torch.float32)
    )
    if kept:
        prune(model, kept)
    report = peftkit.record(peftkit.merge(model, torch.float32, probe={"input_ids": ids}))["merge"]
    tolerance = 5e-2 if quantization == "int8" else 1e-4
    assert report["largest_logit_difference"] <= tolerance * report["largest_logit"]


def test_adalora_merges_in_place_into_floats_and_is_refused_on_quantised_weights(llama_dir, ids):
    model = attached(peftkit.load_backbone(llama_dir, dtype=torch.float32))
    expected = logits(model, ids)
    model.merge_adapter()
    assert torch.allclose(logits(model, ids), expected, atol=1e-4)
    model.unmerge_adapter()
    assert torch.allclose(logits(model, ids), expected, atol=1e-4)
    quantised = attached(peftkit.load_backbone(llama_dir, quantization="nf4"))
    with pytest.raises(ConfigError, match=r"lost in a weight of nf4; peftkit\.merge"):
        quantised.merge_adapter()


@from_peft
@pytest.mark.parametrize("kept", [None, every_second, all_but_the_first_layer])
def test_an_exported_adalora_adapter_is_plain_lora_that_computes_the_same(
    llama_dir, tmp_path, ids, kept
):
    backbone = peftkit.load_backbone(llama_dir, dtype=torch.float32)
    model = attached(backbone)
    if kept:
        prune(model, kept)
    expected = logits(model, ids)
    peftkit.export_lora(model, tmp_path / "lora")
    fields = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    rank = max(adalora.ranks(model).values())
    assert (fields["peft_type"], fields["r"], fields["lora_alpha"]) == ("LORA", rank, rank)
    assert (fields["rank_pattern"], fields["alpha_pattern"]) == ({}, {})
    backbone = peftkit.detach(model)
    loaded = peftkit.load(backbone, tmp_path / "lora")
    assert torch.allclose(logits(loaded, ids), expected, atol=1e-5)
    backbone = peftkit.detach(loaded)
    assert torch.allclose(
        logits(peft.PeftModel.from_pretrained(backbone, tmp_path / "lora"), ids),
        expected,
        atol=1e-5,
    )


def test_adalora_adapts_merges_and_exports_conv1d_layers_and_trained_heads(tmp_path, ids):
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2))
    for backbone in (gpt2, BertForSequenceClassification(BertConfig(**sizes))):
        model = attached(backbone)
        expected = logits(model, ids)
        assert torch.allclose(logits(peftkit.merge(model, torch.float32), ids), expected, atol=1e-4)
        peftkit.save(model, tmp_path / "adapter")
        peftkit.export_lora(model, tmp_path / "lora")
        for directory in ("adapter", "lora"):
            loaded = peftkit.load(peftkit.detach(model), tmp_path / directory)
            assert torch.allclose(logits(loaded, ids), expected, atol=1e-5)
            model = loaded


def test_exporting_an_adapter_that_has_no_lora_form_is_refused(backbone, tmp_path):
    with pytest.raises(
        ConfigError, match="the lora adapter 'default' has no other form as plain LoRA"
    ):
        peftkit.export_lora(peftkit.attach(backbone, peftkit.LoraConfig(r=2)), tmp_path)


@from_peft
def test_an_adalora_adapter_that_peft_attached_is_neither_trained_nor_merged(backbone):
    plain = peft.get_peft_model(backbone, config(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match=r"attach it with peftkit\.attach"):
        Allocation(plain, torch.optim.SGD(plain.parameters()), 10)
    with pytest.raises(
        ConfigError, match=r"PEFT itself has attached .*; load it with peftkit\.load"
    ):
        peftkit.merge(plain)


# refusals


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"init_r": 0, "target_r": 0}, ConfigError, "init_r is 0; .*target_r is 0"),
        ({"target_r": 7}, ConfigError, "target_r is 7, more than init_r, 6"),
        ({"deltaT": 0}, ConfigError, "deltaT is 0"),
        ({"beta1": 1.0}, ConfigError, "beta1 is 1.0"),
        ({"lora_alpha": 0}, ConfigError, "lora_alpha is 0"),
        ({"lora_dropout": 1.0}, ConfigError, "lora_dropout is 1.0"),
        ({"orth_reg_weight": float("nan")}, ConfigError, "orth_reg_weight is nan"),
        ({"use_rslora": True}, ConfigError, "use_rslora"),
        ({"alpha_pattern": {"q_proj": 4}}, ConfigError, "alpha_pattern"),
        ({"target_parameters": ["weight"]}, ConfigError, "target_parameters"),
        ({"init_lora_weights": "pissa"}, ConfigError, "init_lora_weights is 'pissa'"),
        (
            {"target_modules": ["embed_tokens"]},
            TargetError,
            "adapts linear layers, and model.embed_tokens is a Embedding",
        ),
        ({"target_modules": ["q_prj"]}, TargetError, "did you mean 'q_proj'"),
    ],
)
def test_config_fields_that_adalora_does_not_use_are_refused(backbone, changes, error, message):
    """PEFT ignores use_rslora, alpha_pattern, target_parameters and other inits without a word."""
    with pytest.raises(error, match=message):
        peftkit.attach(backbone, config(**changes))


def test_a_second_trainable_adalora_adapter_is_refused(backbone):
    model = peftkit.attach(backbone, config())
    with pytest.raises(ValueError, match="only 1 trainable adapter"):
        model.add_adapter("second", config(target_modules=["q_proj"]))


@from_peft
def test_our_adalora_classes_replace_those_of_peft_0_21_only_while_attaching(llama_dir, ids):
    """If this fails on a new PEFT, read peft.tuners.adalora.model again, and the list of defects in
    this file.
    """
    assert peft.__version__.startswith("0.21.")
    peftkit.attach(peftkit.load_backbone(llama_dir), config())
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.ADALORA] is AdaLoraModel
    plain = peft.get_peft_model(
        peftkit.load_backbone(llama_dir), config(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    loss, own = losses(plain.eval(), ids)
    assert loss > own + 0.1  # the penalty, in evaluation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TypeError):  # a layer that a step has not used
            plain.base_model.update_and_allocate(5)
