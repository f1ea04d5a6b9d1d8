"""The lean update's gradients beside PEFT's, against float64, and bit for bit where it rounds as
PEFT does.
"""

import copy
import dataclasses

import peft
import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM

import peftkit
from peftkit.lean import Lean
from peftkit.methods.adalora import layer as adalora
from tests.architectures import ARCHITECTURES
from tests.conftest import logits
from tests.lean.step import (
    STORAGES,
    assert_same,
    attached,
    batch,
    configured,
    median_error,
    reference,
    relative_errors,
    step,
    stored,
)
from tests.methods.test_adalora import all_but_the_first_layer, prune

WAYS = {
    "plain": {},
    "autocast": {"autocast": torch.bfloat16},
    "checkpointing": {"checkpointing": True},
    "all": {"autocast": torch.bfloat16, "checkpointing": True},
}


def is_somebodys(storage, way):
    """Nobody has a float16 backbone under bfloat16 autocast."""
    return storage != "float16" or "autocast" not in WAYS[way]


CASES = [
    (method, storage, way)
    for method in ("lora", "adalora")
    for storage in STORAGES
    for way in ("plain", "all")
]
CASES += [
    (method, storage, way)
    for method in ("pfeiffer", "prefix")
    for storage in ("float32", "nf4")
    for way in WAYS
]
CASES = [case for case in CASES if is_somebodys(*case[1:])]
PARTS_OFF = Lean(loss=False, norms=False, feed_forward=False)
LINEAR = 14  # of a Llama with two blocks


def assert_no_further_than_peft(backbone, config, batches, storage, **how):
    """Two draws of rounding differ by some per cent in their median, by more where few bits are
    left of it.
    """
    model = {lean: attached(backbone(), copy.deepcopy(config), lean) for lean in (False, True)}
    exact = reference(model[False])
    error = {lean: median_error(one, exact, batches, **how) for lean, one in model.items()}
    assert error[True] <= (1.5 if storage == "float32" else 1.25) * error[False]
    assert error[True] < (1e-5 if storage == "float32" and not how.get("autocast") else 0.05)


@pytest.mark.parametrize(("method", "storage", "way"), CASES)
def test_lora_gradients_are_as_near_to_float64_as_those_of_peft(llama_dir, method, storage, way):
    """Of every tensor of the adapter and of the input; with dropout, whose masks are those of
    float64.
    """
    changes = {"lora_dropout": 0.2} if way == "all" and method in ("lora", "adalora") else {}
    assert_no_further_than_peft(
        lambda: stored(storage, llama_dir),
        configured(method, **changes),
        [batch(0), batch(1)],
        storage,
        **WAYS[way],
    )


def parallel_or_conv1d(name):
    if name == "gpt2":
        undropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return dataclasses.replace(
            ARCHITECTURES[name], settings=ARCHITECTURES[name].settings | undropped
        ).model()
    if name != "cohere":
        return ARCHITECTURES[name].model()
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return CohereForCausalLM(CohereConfig(**sizes, **heads))


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize("name", ["gpt_neox", "phi", "cohere", "gpt2"])
def test_lora_gradients_are_as_near_to_float64_with_shared_inputs_and_conv1d_layers(name, method):
    batches = [batch(seed, vocabulary=90, tokens=12) for seed in range(3)]
    assert_no_further_than_peft(
        lambda: parallel_or_conv1d(name).to(torch.bfloat16), configured(method), batches, "bfloat16"
    )


# bit for bit


@pytest.mark.parametrize(
    ("storage", "way"), [(one, way) for one in STORAGES for way in WAYS if is_somebodys(one, way)]
)
def test_exact_lora_training_is_peft_bit_for_bit(llama_dir, storage, way):
    """In float32 a norm's gradient is added to the residual's as one sum, and by autograd in two
    parts.
    """
    lean = Lean(exact=True, loss=False, norms=storage != "float32")
    config = configured("lora", lora_dropout=0.3 if way in ("plain", "all") else 0.0)
    one, other = (
        step(attached(stored(storage, llama_dir), config, each), batch(), **WAYS[way])
        for each in (lean, False)
    )
    assert_same(one, other)


@pytest.mark.parametrize("method", ["adalora", "pfeiffer", "prefix"])
@pytest.mark.parametrize("storage", ["bfloat16", "nf4"])
def test_exact_training_of_other_methods_is_peft_bit_for_bit(llama_dir, storage, method):
    lean = Lean(exact=True, loss=False)
    one, other = (
        step(attached(stored(storage, llama_dir), configured(method), each), batch(), **WAYS["all"])
        for each in (lean, False)
    )
    assert_same(one, other)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("storage", STORAGES)
def test_exact_lora_computes_what_a_model_adapted_by_plain_peft_computes(llama_dir, storage):
    config = configured("lora", lora_dropout=0.3)
    ours = attached(
        stored(storage, llama_dir), config, Lean(exact=True, loss=False, norms=storage != "float32")
    )
    config = peft.LoraConfig(
        r=4, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(stored(storage, llama_dir), config)
    peft.set_peft_model_state_dict(theirs, peft.get_peft_model_state_dict(ours))
    assert_same(step(ours, batch()), step(theirs, batch()))


# what it does not serve


def lean_record(model):
    record = peftkit.record(model)["lean"]
    return record["layers"], record["layers_of_peft"]


UNSERVED = {
    "dora": ({"use_dora": True}, "DoraLinearVariant is PEFT's own"),
    "activated": ({"alora_invocation_tokens": [5]}, "ALoraLinearVariant is PEFT's own"),
}


@pytest.mark.parametrize("storage", ["bfloat16", "nf4"])
@pytest.mark.parametrize("name", UNSERVED)
def test_lora_variants_take_the_path_of_peft_and_are_recorded(llama_dir, name, storage):
    changes, reason = UNSERVED[name]
    lean, plain = (
        attached(stored(storage, llama_dir), configured("lora", **changes), each)
        for each in (PARTS_OFF, False)
    )
    assert lean_record(lean) == (0, {reason: LINEAR})
    assert reason in peftkit.recording.summary(lean)
    embedded = name != "activated"  # which looks for its tokens among the ids
    assert_same(step(lean, batch(), embedded=embedded), step(plain, batch(), embedded=embedded))


def test_a_lora_bias_takes_the_path_of_peft():
    config = configured("lora", lora_bias=True, target_modules=["q_proj", "dense"])
    lean, plain = (
        attached(ARCHITECTURES["phi"].model().to(torch.bfloat16), config, each)
        for each in (PARTS_OFF, False)
    )
    assert lean_record(lean) == (0, {"lora_bias adds a bias to B": 4})
    assert_same(*(step(each, batch(vocabulary=90)) for each in (lean, plain)))


def test_lean_lora_layers_are_recorded_and_can_be_switched_off(llama_dir):
    assert lean_record(attached(stored("nf4", llama_dir), configured("lora"), True)) == (LINEAR, {})
    plain = attached(stored("nf4", llama_dir), configured("lora"), False)
    assert lean_record(plain) == (0, {"lean.layers is off": LINEAR})
    assert not any("forward" in vars(module) for module in plain.get_base_model().modules())


def test_rank_stabilised_lora_is_computed_by_the_lean_layer(llama_dir):
    config = configured("lora", use_rslora=True, lora_alpha=12)
    model = attached(stored("bfloat16", llama_dir), config, Lean(exact=True, loss=False))
    assert lean_record(model) == (LINEAR, {})
    assert_same(
        step(model, batch()), step(attached(stored("bfloat16", llama_dir), config, False), batch())
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_lora_evaluation_is_peft_bit_for_bit(llama_dir, storage, ids):
    one, other = (
        attached(stored(storage, llama_dir), configured("lora"), lean) for lean in (True, False)
    )
    assert torch.equal(logits(one, ids), logits(other, ids))


def with_gradient(model, ids, **more):
    """Logits, made where gradients are wanted, and a gradient."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    found = model(inputs_embeds=embedded, **more).logits
    return found.detach(), torch.autograd.grad(found.float().square().sum(), embedded)[0]


def both(llama_dir, change, ids, lean=PARTS_OFF, **more):
    """Logits and gradient of a lean and of a plain model that something was done to."""
    found = []
    for each in (lean, False):
        model = attached(stored("bfloat16", llama_dir), configured("lora"), each)
        attached_too(model, each)
        change(model)
        found += with_gradient(model, ids, **more)
    return [torch.equal(found[0], found[2]), torch.equal(found[1], found[3])]


def attached_too(model, lean):
    """A second adapter, not active."""
    torch.manual_seed(5)
    peftkit.attach(model, configured("lora", r=2), name="other", lean=lean)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B.other" in name:
                parameter.normal_(std=0.1)
    model.set_adapter("default")


def test_merged_lora_layers_take_the_path_of_peft(llama_dir, ids):
    def merge(model):
        model.merge_adapter()
        layer = next(
            part for part in model.modules() if isinstance(part, peft.tuners.lora.LoraLayer)
        )
        assert layer.why_not() in ("the adapter is switched off or merged", "lean.layers is off")

    assert both(llama_dir, merge, ids) == [True, True]


def test_disabled_lora_layers_are_the_backbone(llama_dir, ids):
    def disable(model):
        model.base_model.disable_adapter_layers()
        with torch.no_grad():
            bare = stored("bfloat16", llama_dir)(ids).logits
            assert torch.equal(model(ids).logits, bare)

    assert both(llama_dir, disable, ids) == [True, True]


def test_an_adapter_for_each_row_takes_the_path_of_peft(llama_dir, ids):
    assert both(llama_dir, lambda model: model.eval(), ids, adapter_names=["default", "other"]) == [
        True,
        True,
    ]


def test_the_updates_of_two_active_lora_adapters_add_up(llama_dir, ids):
    def activate(model):
        model.base_model.set_adapter(["default", "other"])

    exact = Lean(exact=True, loss=False, norms=False, feed_forward=False)
    assert both(llama_dir, activate, ids, exact)[0]
    model = attached(stored("float32", llama_dir), configured("lora"), True)
    attached_too(model, True)
    one, other = (
        with_gradient(model, ids)[0]
        for _ in map(model.base_model.set_adapter, ("default", "other"))
    )
    activate(model)
    two = with_gradient(model, ids)[0]
    plain = attached(stored("float32", llama_dir), configured("lora"), False)
    attached_too(plain, False)
    activate(plain)
    assert torch.allclose(two, with_gradient(plain, ids)[0], atol=1e-4)
    assert not torch.allclose(two, one, atol=1e-4)
    assert not torch.allclose(two, other, atol=1e-4)


def test_a_hook_on_a_lora_matrix_is_called(llama_dir, ids):
    heard = []

    def listen(model):
        layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj.lora_A.default")
        layer.register_forward_hook(lambda *_: heard.append(1))

    assert both(
        llama_dir, listen, ids, Lean(exact=True, loss=False, norms=False, feed_forward=False)
    ) == [True, True]
    assert len(heard) == 2


def test_a_second_derivative_of_lora_raises_an_error(llama_dir, ids):
    model = attached(stored("float32", llama_dir), configured("lora"), True)
    loss = model(input_ids=ids, labels=ids).loss
    gradients = torch.autograd.grad(
        loss, [p for p in model.parameters() if p.requires_grad], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(one.square().sum() for one in gradients).backward()


def test_float16_lora_layers_pass_scaled_gradients_on(llama_dir):
    """The gradients of float32 matrices do not pass through float16 on the way."""
    model = attached(stored("float16", llama_dir), configured("lora"), True)
    plain = attached(stored("float16", llama_dir), configured("lora"), False)
    found = [step(each, batch())[1] for each in (model, plain)]
    assert all(torch.isfinite(one).all() for one in found[0].values())
    assert max(relative(found[0][name], found[1][name]) for name in found[0]) < 0.02


def relative(one, other):
    return float((one - other).norm() / other.norm())


def test_lora_layers_that_are_not_linear_are_recorded_too(llama_dir):
    model = attached(
        stored("bfloat16", llama_dir),
        configured("lora", target_modules={"embed_tokens", "q_proj"}),
        True,
    )
    assert lean_record(model) == (2, {"Embedding is PEFT's own": 1})


# what it spares


@pytest.mark.parametrize("storage", ["bfloat16", "nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_last_product_of_a_checkpointed_block_is_not_recomputed(llama_dir, storage, method):
    """Once the update has what it needs, nothing of the block is missing; all else is computed
    twice.
    """
    model = attached(stored(storage, llama_dir), configured(method), True)
    runs = {"up_proj": 0, "down_proj": 0}
    for name in runs:
        layer = model.get_base_model().model.layers[1].mlp.get_submodule(name).base_layer
        layer.register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    step(model, batch(), checkpointing=True)
    assert runs == {"up_proj": 2, "down_proj": 1}


@pytest.mark.parametrize("storage", ["nf4", "fp4"])
@pytest.mark.parametrize("way", WAYS)
def test_sharing_dequantised_weights_changes_no_bit_of_lora_training(llama_dir, storage, way):
    lean = Lean(exact=True, loss=False, weights=True)
    model = attached(stored(storage, llama_dir), configured("lora"), lean)
    assert peftkit.record(model)["lean"]["weights"] == LINEAR
    plain = attached(stored(storage, llama_dir), configured("lora"), False)
    assert_same(step(model, batch(), **WAYS[way]), step(plain, batch(), **WAYS[way]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_left_with_rank_zero_by_adalora_train_on(llama_dir, checkpointing):
    found = []
    for lean in (Lean(exact=True, loss=False), True, False):
        model = attached(stored("bfloat16", llama_dir), configured("adalora"), lean)
        prune(model, all_but_the_first_layer)
        assert min(adalora.ranks(model).values()) == 0
        loss, gradients = step(model, batch(), checkpointing=checkpointing)
        found.append((loss, {name: value for name, value in gradients.items() if value.numel()}))
    assert_same(found[0], found[2])
    assert float(relative_errors(found[1][1], found[2][1]).max()) < 0.05
