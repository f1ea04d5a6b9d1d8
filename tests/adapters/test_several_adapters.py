"""Several adapters on one backbone: switched, joined, one for each row, on quantised weights."""

import pytest
import torch

import peftkit
from peftkit.errors import ConfigError
from tests.architectures import ARCHITECTURES
from tests.conftest import logits, randomize
from tests.contract import METHODS, output, shaken


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_lora_an_adapter_and_a_prefix_at_once_come_back_from_their_own_files(name, tmp_path):
    architecture = ARCHITECTURES[name]
    batch, before = architecture.batch(), output(architecture.model(), architecture.batch())
    model = shaken(peftkit.attach(architecture.model(), METHODS["lora"](), name="lora"))
    alone = output(model, batch)
    for method in ("scaled_parallel", "prefix"):
        model = peftkit.attach(model, METHODS[method](), name=method)
        if method != "prefix":
            assert torch.equal(output(model, batch), alone)  # it has joined, and does nothing yet
        shaken(model)
    assert model.active_adapters == ["lora", "scaled_parallel", "prefix"]
    together = output(model.requires_grad_(False), batch)
    with model.disable_adapter():
        assert torch.equal(output(model, batch), before)
    names = ["lora", "scaled_parallel", "prefix"]
    for part in names:
        peftkit.save(model, tmp_path / part, name=part)
    again = architecture.model()
    for part in names:
        again = peftkit.load(again, tmp_path / part, name=part)
    assert torch.equal(output(again, batch), together)
    plain = peftkit.detach(again)
    assert torch.equal(output(plain, batch), before)
    only = peftkit.load(plain, tmp_path / "lora")
    assert only.peft_config.keys() == {"default"}


def test_a_second_adapter_of_a_method_takes_the_firsts_place_and_switching_goes_back():
    architecture = ARCHITECTURES["bert"]
    batch = architecture.batch()
    model = shaken(peftkit.attach(architecture.model(), METHODS["houlsby"](), name="one"))
    one = output(model, batch)
    model = shaken(peftkit.attach(model, METHODS["pfeiffer"](), name="two"))
    two = output(model, batch)
    assert not torch.equal(one, two)
    assert all(
        ".two" in key for key, parameter in model.named_parameters() if parameter.requires_grad
    )
    model.set_adapter("one")
    assert torch.equal(output(model, batch), one)
    model.set_adapter("two")
    assert torch.equal(output(model, batch), two)
    model.set_adapter("one")
    model.delete_adapter("two")
    assert torch.equal(output(model, batch), one)


def test_one_head_is_trained_where_methods_join():
    model = peftkit.attach(ARCHITECTURES["bert"].model(), METHODS["lora"]())
    model = peftkit.attach(model, METHODS["prefix"](), name="prefix")
    heads = [
        key
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and "classifier" in key
    ]
    assert {key.split(".")[-2] for key in heads} == {"default"}


def test_rows_of_a_batch_can_have_different_lora_adapters():
    batch = ARCHITECTURES["llama"].batch(labels=False)
    model = shaken(peftkit.attach(ARCHITECTURES["llama"].model(), METHODS["lora"](), name="a"))
    model = shaken(peftkit.attach(model, peftkit.LoraConfig(r=2), name="b"))
    expected = []
    for row, name in enumerate(("a", "b")):
        model.set_adapter(name)
        expected.append(output(model, batch)[row])
    found = output(model, {**batch, "adapter_names": ["a", "b"]})
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize(("first", "second"), [("lora", "adalora"), ("adalora", "lora")])
def test_lora_and_adalora_are_not_put_on_one_model(first, second):
    model = peftkit.attach(ARCHITECTURES["llama"].model(), METHODS[first]())
    with pytest.raises(ConfigError, match="cannot be on one model"):
        peftkit.attach(model, METHODS[second](), name="second")
    assert model.peft_config.keys() == {"default"}


def test_each_adapter_stays_as_trainable_as_it_was_attached(tmp_path):
    peftkit.save(
        shaken(peftkit.attach(ARCHITECTURES["llama"].model(), METHODS["lora"]())), tmp_path
    )
    model = peftkit.load(ARCHITECTURES["llama"].model(), tmp_path, name="frozen")
    model = peftkit.attach(model, METHODS["prefix"](), name="prefix")
    assert {"prefix" in key for key, p in model.named_parameters() if p.requires_grad} == {True}
    model = peftkit.attach(ARCHITECTURES["llama"].model(), METHODS["prefix"](), name="prefix")
    model = peftkit.load(model, tmp_path, name="frozen")
    assert {"prefix" in key for key, p in model.named_parameters() if p.requires_grad} == {True}
    assert model.training


@pytest.mark.parametrize("order", [("lora", "houlsby"), ("houlsby", "lora")])
def test_adapters_read_what_lora_has_changed_whichever_came_first(order, tmp_path):
    architecture, batch = ARCHITECTURES["llama"], ARCHITECTURES["llama"].batch()
    for method in order:
        peftkit.save(
            shaken(peftkit.attach(architecture.model(), METHODS[method]())), tmp_path / method
        )
    expected = architecture.model()
    for method in ("lora", "houlsby"):
        expected = peftkit.load(expected, tmp_path / method, name=method)
    found = architecture.model()
    for method in order:
        found = peftkit.load(found, tmp_path / method, name=method)
    assert torch.equal(output(found, batch), output(expected, batch))
    assert torch.equal(output(peftkit.detach(found), batch), output(architecture.model(), batch))


def test_a_module_that_one_adapter_trains_is_not_anothers(tmp_path):
    model = shaken(peftkit.attach(ARCHITECTURES["bert"].model(), METHODS["lora"](), name="head"))
    model = shaken(peftkit.attach(model, METHODS["prefix"](), name="other"))
    assert peftkit.record(model)["attach other"]["saved_modules"] == []
    peftkit.save(model, tmp_path, name="other")
    alone = peftkit.load(ARCHITECTURES["bert"].model(), tmp_path)
    assert not [key for key in alone.state_dict() if "modules_to_save" in key]


@pytest.mark.parametrize("method", ["adalora", "houlsby", "prefix", "joined"])
def test_an_adapter_for_each_row_is_refused_where_it_would_not_be_heeded(method):
    batch = ARCHITECTURES["llama"].batch(labels=False)
    model = peftkit.attach(
        ARCHITECTURES["llama"].model(), METHODS["lora" if method == "joined" else method]()
    )
    if method == "joined":
        model = peftkit.attach(model, METHODS["prefix"](), name="prefix")
    with pytest.raises(ConfigError, match="adapter_names needs LoRA adapters alone"):
        model(**batch, adapter_names=["default", "__base__"])


def test_what_writes_to_the_backbone_comes_first_and_one_adapter_is_merged():
    model = peftkit.attach(ARCHITECTURES["llama"].model(), METHODS["lora"]())
    with pytest.raises(
        ConfigError, match="init_lora_weights='pissa' writes to the backbone's weights"
    ):
        peftkit.attach(model, peftkit.LoraConfig(r=2, init_lora_weights="pissa"), name="second")
    model = peftkit.attach(model, METHODS["prefix"](), name="prefix")
    with pytest.raises(ConfigError, match="one adapter is merged at a time"):
        peftkit.merge(model)
    with pytest.raises(ConfigError, match="layer_replication builds layers anew"):
        peftkit.attach(
            ARCHITECTURES["llama"].model(),
            peftkit.LoraConfig(r=2, layer_replication=[[0, 2], [0, 2]]),
        )


def test_a_failed_second_adapter_leaves_the_first(tmp_path):
    model, batch = ARCHITECTURES["llama"].model(), ARCHITECTURES["llama"].batch()
    model = shaken(peftkit.attach(model, METHODS["lora"]()))
    before = output(model, batch)
    with pytest.raises(peftkit.errors.TargetError):
        peftkit.attach(model, peftkit.BottleneckConfig(target_modules=["nowhere"]), name="other")
    peftkit.save(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(peftkit.errors.AdapterFileError):
        peftkit.load(model, tmp_path, name="other")
    assert model.peft_config.keys() == {"default"}
    assert torch.equal(output(model, batch), before)
    with pytest.raises(ConfigError, match="has no adapter 'other'"):
        peftkit.save(model, tmp_path, name="other")


@pytest.mark.parametrize("method", METHODS)
def test_on_quantised_weights_every_method_trains_reloads_disables_and_comes_off(
    any_backbone, ids, method, tmp_path
):
    before = logits(any_backbone, ids)
    model = peftkit.attach(any_backbone, METHODS[method]())
    if method != "prefix":
        assert torch.equal(logits(model, ids), before)
    randomize(model, 0.1)
    model.train()
    for _ in range(2):  # train, evaluate, train: the trap of the re-packed weights
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        first = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
        logits(model, ids)
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32
                torch.testing.assert_close(parameter.grad, first[key], rtol=1e-3, atol=1e-6)
    found = logits(model.requires_grad_(False), ids)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)
    peftkit.save(model, tmp_path)
    plain = peftkit.detach(model)
    assert torch.equal(logits(plain, ids), before)
    assert torch.equal(logits(peftkit.load(plain, tmp_path), ids), found)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_fused_experts_are_left_alone_by_default_and_adapted_when_named(quantization, tmp_path):
    """PEFT's target_parameters, on models whose linear layers are quantised: no drift over repeated
    forwards.
    """
    architecture = ARCHITECTURES["mixtral"]
    architecture.model().to(torch.bfloat16).save_pretrained(tmp_path / "mixtral")
    batch = architecture.batch()

    def backbone():
        return peftkit.load_backbone(tmp_path / "mixtral", quantization=quantization)

    model = peftkit.attach(backbone(), peftkit.LoraConfig(r=2))
    left = peftkit.record(model)["attach"]["left_alone"]
    assert any("experts" in reason for reason in left)
    assert not [
        key
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and "experts" in key
    ]

    config = peftkit.LoraConfig(
        r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    before = output(peftkit.detach(model), batch)
    model = peftkit.attach(backbone(), config)
    assert torch.equal(output(model, batch), before)
    shaken(model)
    found = output(model, batch)
    assert not torch.equal(found, before)
    assert all(torch.equal(output(model, batch), found) for _ in range(4))
    model(**batch).loss.backward()
    assert all(
        bool(p.grad.isfinite().all())
        for p in model.parameters()
        if p.requires_grad and p.grad is not None
    )
    peftkit.save(model, tmp_path / "adapter")
    torch.testing.assert_close(
        output(peftkit.load(backbone(), tmp_path / "adapter"), batch), found, rtol=0, atol=0
    )
