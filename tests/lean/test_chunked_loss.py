"""The loss in chunks is the model's own, with its gradients; and logits come when asked for."""

import copy
import dataclasses

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import peftkit
from peftkit.data.padding import PadRight
from peftkit.lean import Lean, cross_entropy, has_chunked_loss, summed
from peftkit.losses.base import CausalLMLoss, ModelLoss
from tests.architectures import ARCHITECTURES
from tests.conftest import llama_config
from tests.lean.step import assert_same, attached, batch, configured, relative_errors, step
from tests.training.job import ragged_examples

CHUNKED = "in chunks of tokens"
LOSS_ONLY = Lean(layers=False, norms=False, feed_forward=False)
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(autouse=True)
def _chunks_of_four(monkeypatch):
    monkeypatch.setattr(cross_entropy, "_FEWEST_TOKENS", 4)


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(vocab_size=96, **changes))


def made(family, model_class=None, **settings):
    """A model of a class that the forty do not have."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_SIZES | _TOKENS | settings)
    return getattr(transformers, model_class or f"{family}ForCausalLM")(config)


def loss_of(model):
    return peftkit.record(model)["lean"]["loss"]


def assert_equal_steps(make, inputs, *, method="lora", config=None, tolerance=2e-6, **how):
    """Assert that loss and gradients are those of the whole logits; return the model with the loss
    in chunks.
    """
    lean, plain = (
        attached(make(), config or configured(method), each) for each in (LOSS_ONLY, False)
    )
    (loss, found), (expected_loss, expected) = (step(each, inputs, **how) for each in (lean, plain))
    assert loss_of(lean) == CHUNKED
    assert float(loss) == pytest.approx(float(expected_loss), rel=tolerance)
    assert float(relative_errors(found, expected).max()) < 10 * tolerance
    return lean


# called as a model is called


CALLS = {
    "labels": {},
    "an int of items": {"num_items_in_batch": 29},
    "a tensor of items": {"num_items_in_batch": torch.tensor(29)},
    "shifted labels": {
        "shift_labels": torch.randint(4, 90, (2, 24)).masked_fill(torch.rand(2, 24) < 0.5, -100)
    },
    "packed rows": {"position_ids": torch.cat([torch.arange(9), torch.arange(15)]).repeat(2, 1)},
    "hidden states": {"output_hidden_states": True},
    "a mask": {"attention_mask": (torch.arange(24) < torch.tensor([[24], [17]])).long()},
}


@pytest.mark.parametrize("call", CALLS)
def test_the_chunked_loss_is_the_models_own_for_each_way_to_ask_for_it(call):
    assert_equal_steps(llama, batch(vocabulary=90) | CALLS[call])


@pytest.mark.parametrize("method", ["lora", "adalora", "pfeiffer", "prefix"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_the_chunked_loss_is_the_models_own_with_every_method_from_the_first_step_on(
    method, autocast
):
    """Under autocast, a weight that was first cast without gradients would have none afterwards."""
    assert_equal_steps(
        llama,
        batch(vocabulary=90),
        method=method,
        autocast=autocast,
        tolerance=2e-3 if autocast else 2e-6,
    )


def test_rows_without_a_label_have_the_models_own_loss():
    inputs = batch(vocabulary=90)
    inputs["labels"][1] = -100
    assert_equal_steps(llama, inputs)
    lean, plain = (attached(llama(), configured("lora"), each) for each in (LOSS_ONLY, False))
    inputs["labels"][:] = -100
    assert all(bool(each(**inputs).loss.isnan()) for each in (lean, plain))
    counted = [each(**inputs, num_items_in_batch=3).loss for each in (lean, plain)]
    assert [each.item() for each in counted] == [0.0, 0.0]
    counted[0].backward()
    assert all(not p.grad.any() for p in lean.parameters() if p.requires_grad)


def test_the_model_computes_the_loss_of_a_short_text_until_a_longer_one_has_told_the_shift():
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, -100, 7]])}
    lean, plain = (attached(llama(), configured("lora"), each) for each in (LOSS_ONLY, False))
    for known in (False, True):
        if known:
            step(lean, batch(vocabulary=90))
        (loss, found), (expected_loss, expected) = (step(each, inputs) for each in (lean, plain))
        assert (loss_of(lean) == CHUNKED) == known
        assert has_chunked_loss(lean)
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
        assert float(relative_errors(found, expected).max()) < 1e-5


def bart_decoder():
    torch.manual_seed(0)
    config = ARCHITECTURES["bart"].config()
    config.is_decoder, config.is_encoder_decoder = True, False
    return transformers.BartForCausalLM(config)


HEADS = {
    "of a decoder whose labels are not shifted": bart_decoder,
    "tied": lambda: llama(tie_word_embeddings=True),
    "capped": lambda: made(
        "Gemma2", head_dim=8, num_key_value_heads=2, final_logit_softcapping=3.0
    ),
    "multiplied": lambda: made("Cohere", num_key_value_heads=2, logit_scale=0.25),
    "divided": lambda: made("Granite", num_key_value_heads=2, logits_scaling=4.0),
    "biased": lambda: ARCHITECTURES["phi"].model(),
    "outside of the attribute lm_head": lambda: ARCHITECTURES["gpt_neox"].model(),
    "behind a transform": lambda: made("Bert", "BertLMHeadModel", is_decoder=True),
    "behind another transform": lambda: made("Roberta", "RobertaForCausalLM", is_decoder=True),
    "of a state space": lambda: ARCHITECTURES["mamba2"].model(),
    "of experts": lambda: ARCHITECTURES["mixtral"].model(),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_capped_scaled_biased_or_tied_head_keeps_its_numbers_in_chunks(head):
    lean = assert_equal_steps(HEADS[head], batch(vocabulary=90), embedded=False)
    shift = lean.get_base_model()._peftkit_chunked_loss.shift
    assert shift == (0 if "not shifted" in head else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}],
    ids=["adapted", "saved", "biases"],
)
def test_a_trained_head_gets_its_gradient_in_chunks(config, dtype):
    if "target_modules" in config:
        config["target_modules"] = set(config["target_modules"])
    assert_equal_steps(
        lambda: llama(attention_bias=True).to(dtype),
        batch(vocabulary=90),
        config=configured("lora", **config),
        tolerance=2e-6 if dtype == torch.float32 else 3e-3,
    )


@pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`:UserWarning"
)  # PEFT's: it trains the rows alone
@pytest.mark.parametrize("method", ["lora", "pfeiffer"])
def test_a_head_that_is_tied_to_trained_embeddings_trains_them_in_chunks(method):
    config = configured(method, modules_to_save=["embed_tokens"])
    assert_equal_steps(
        lambda: llama(tie_word_embeddings=True),
        batch(vocabulary=90),
        config=config,
        tolerance=1e-5,
        embedded=False,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_trained_rows_of_the_embeddings_are_in_the_chunked_head_that_is_tied_to_them(tied):
    config = configured("lora", trainable_token_indices=[5, 6, 7])
    inputs = batch(vocabulary=90)
    inputs["input_ids"][:, :3] = torch.tensor([5, 6, 7])
    assert_equal_steps(
        lambda: llama(tie_word_embeddings=tied),
        inputs,
        config=config,
        tolerance=1e-5,
        embedded=False,
    )


@pytest.mark.parametrize(
    "name", [n for n, a in ARCHITECTURES.items() if a.task in ("seq2seq-lm", "speech-seq2seq")]
)
def test_the_chunked_loss_of_an_encoder_decoder_is_its_own(name):
    """With the same masks of its own dropout."""
    lean = assert_equal_steps(
        ARCHITECTURES[name].model, ARCHITECTURES[name].batch(padding="right"), embedded=False
    )
    assert lean.get_base_model()._peftkit_chunked_loss.shift == 0


@pytest.mark.parametrize("padding", ["left", "right"])
def test_images_and_padding_do_not_change_the_chunked_loss(padding):
    llava = ARCHITECTURES["llava"]
    assert_equal_steps(llava.model, llava.batch(padding=padding), embedded=False)


# what stays the model's own


def with_router_losses(**changes):
    mixtral = ARCHITECTURES["mixtral"]
    return dataclasses.replace(mixtral, settings=mixtral.settings | changes).model()


def assert_left_alone(make, inputs, reason, *, config=None, steps=2, **how):
    """Assert that a model trains as it does without the loss in chunks, bit for bit, and that the
    record says why.
    """
    lean, plain = (
        attached(make(), config or configured("lora", lora_dropout=0.2), each)
        for each in (LOSS_ONLY, False)
    )
    for seed in range(steps):
        taken = [(step(each, inputs, seed=seed, **how), torch.rand(3)) for each in (lean, plain)]
        assert_same(taken[0][0], taken[1][0])
        assert torch.equal(taken[0][1], taken[1][1])
    assert reason in loss_of(lean)
    assert not has_chunked_loss(lean)
    return lean


@pytest.mark.parametrize("coefficient", [0.001, 0.02, 1.0])
def test_what_the_routers_of_experts_add_to_a_loss_is_not_lost(coefficient):
    """By default, a thousandth of the load balance: next to nothing beside a loss of five."""
    assert_left_alone(
        lambda: with_router_losses(output_router_logits=True, router_aux_loss_coef=coefficient),
        batch(vocabulary=90),
        "not the cross-entropy of its logits",
    )


@pytest.mark.parametrize("place", ["call", "config"])
def test_a_routers_loss_that_is_switched_on_later_is_not_lost(place):
    lean, plain = (
        attached(with_router_losses(), configured("lora"), each) for each in (LOSS_ONLY, False)
    )
    inputs = batch(vocabulary=90)
    step(lean, inputs)
    assert loss_of(lean) == CHUNKED
    for asked in [inputs] if place == "call" else [vars(lean.config), vars(plain.config)]:
        asked["output_router_logits"] = True
    assert_same(step(lean, inputs), step(plain, inputs))


def test_a_head_with_dropout_computes_its_loss_whole_with_the_same_masks():
    config = configured("lora", target_modules=["q_proj", "lm_head"], lora_dropout=0.3)
    assert_left_alone(llama, batch(vocabulary=90), "its head drops out", config=config)


def test_a_loss_that_is_no_cross_entropy_is_left_to_the_model():
    def half(logits, labels, **options):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()) / 2

    def make():
        model = llama()
        model.loss_function = half
        return model

    assert_left_alone(make, batch(vocabulary=90), "not the cross-entropy of its logits")


def test_a_classifier_has_no_chunked_loss():
    bert = ARCHITECTURES["bert"]
    lean = attached(bert.model(), configured("lora"), True)
    assert "output embedding" in loss_of(lean)
    assert not has_chunked_loss(lean)
    assert lean(**bert.batch()).logits is not None


def test_probing_the_loss_moves_no_random_number():
    inputs = batch(vocabulary=90)
    after = []
    for lean in (LOSS_ONLY, False):
        model = attached(llama(), configured("lora", lora_dropout=0.3), lean)
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        after.append(torch.rand(3))
    assert torch.equal(*after)


# whoever asks for logits gets them


@pytest.mark.parametrize(
    "way", ["evaluation", "no gradients", "no labels", "a tuple", "some logits"]
)
def test_logits_are_returned_where_no_step_is_taken(way, ids):
    ids = ids % 90
    model, plain = (attached(llama(), configured("lora"), lean) for lean in (LOSS_ONLY, False))
    model(input_ids=ids, labels=ids).loss.backward()  # it has been asked already
    options = {"labels": ids} if way != "no labels" else {}
    options |= (
        {"return_dict": False}
        if way == "a tuple"
        else {"logits_to_keep": 12}
        if way == "some logits"
        else {}
    )
    for each in (model, plain):
        each.train(way != "evaluation")
    with torch.set_grad_enabled(way != "no gradients"):
        found, expected = (each(input_ids=ids, **options) for each in (model, plain))
    logits, wanted = (each[1] if way == "a tuple" else each.logits for each in (found, expected))
    assert torch.equal(logits, wanted)
    if way == "a tuple":
        assert torch.equal(found[0], expected[0])
    elif way != "no labels":
        assert torch.equal(found.loss, expected.loss)


@pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "whisper"])
def test_generation_gives_the_same_tokens_with_a_chunked_loss(name):
    inputs = ARCHITECTURES[name].batch(labels=False)
    inputs.pop("decoder_input_ids", None)
    lean, plain = (
        attached(ARCHITECTURES[name].model(), configured("lora"), each) for each in (True, False)
    )
    lean(**ARCHITECTURES[name].batch()).loss.backward()
    written = [
        each.eval().generate(**inputs, max_new_tokens=5, do_sample=False) for each in (lean, plain)
    ]
    assert torch.equal(*written)


def test_a_training_step_returns_its_loss_and_no_logits():
    model = attached(llama(), configured("lora"), True)
    assert loss_of(model).startswith("in chunks, if")
    output = model(**batch(vocabulary=90), output_hidden_states=True)
    assert output.logits is None
    assert output.hidden_states[-1].shape == (2, 24, 64)
    assert loss_of(model) == CHUNKED
    assert CHUNKED in peftkit.recording.summary(model)


def test_a_chunked_step_and_detach_leave_the_model_as_it_was():
    model = llama()
    modules, forward = dict(model.named_modules()), model.forward
    hooks = {
        name: list(part._forward_hooks) + list(part._forward_pre_hooks)
        for name, part in modules.items()
    }
    adapted = attached(model, configured("prefix"), LOSS_ONLY)
    adapted(**batch(vocabulary=90)).loss.backward()
    assert {name: type(part) for name, part in model.named_modules()}.items() >= {
        name: type(part) for name, part in modules.items()
    }.items()
    assert peftkit.detach(adapted) is model
    assert dict(model.named_modules()) == modules
    assert "forward" not in vars(model)
    assert model.forward == forward
    assert {
        n: list(p._forward_hooks) + list(p._forward_pre_hooks) for n, p in model.named_modules()
    } == hooks
    output = model.train()(**batch(vocabulary=90))
    assert output.logits is not None


def test_an_error_in_the_body_of_the_model_is_raised_and_leaves_no_trace():
    model = attached(llama(), configured("lora"), LOSS_ONLY)
    inputs = batch(vocabulary=90)
    body = model.get_base_model().model
    with pytest.raises((IndexError, RuntimeError), match=r"index|range"):
        model(input_ids=inputs["input_ids"] + 1000, labels=inputs["labels"])
    assert not body._forward_hooks
    assert not model.get_base_model().lm_head._forward_pre_hooks
    loss = model(**inputs).loss
    plain = attached(llama(), configured("lora"), False)(**inputs).loss
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_model_built_after_another_was_made_lean_is_untouched():
    before = llama()
    output = before.train()(**batch(vocabulary=90))
    attached(llama(), configured("lora"), True)(**batch(vocabulary=90)).loss.backward()
    after = llama().train()
    again = after(**batch(vocabulary=90))
    assert torch.equal(again.loss, output.loss)
    assert torch.equal(again.logits, output.logits)
    assert not any("forward" in vars(module) for module in after.modules())
    assert type(after).forward is type(before).forward


# sums


def undropped(make):
    model = make()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_losses_are_summed_on_request_in_training_and_in_evaluation(name, training):
    inputs = ARCHITECTURES[name].batch(padding="right")
    make = ARCHITECTURES[name].model
    lean, plain = (
        attached(undropped(make), configured("lora"), each).train(training)
        for each in (LOSS_ONLY, False)
    )
    loss = CausalLMLoss() if name == "llama" else ModelLoss()
    found, expected = (loss.sum(each, inputs) for each in (lean, plain))
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    with summed(), torch.set_grad_enabled(training):
        output = lean(**inputs)
    assert output.logits is None
    assert output.loss.item() == pytest.approx(expected.item(), rel=2e-6)
    assert lean(**inputs).logits is None or not training


def test_losses_summed_over_accumulated_steps_are_the_sum_of_the_whole_batch():
    """Two halves, each with its own number of labels, divided by the number of both."""
    whole = batch(vocabulary=90)
    count = int((whole["labels"][:, 1:] != -100).sum())
    model = attached(llama(), configured("lora"), LOSS_ONLY)
    _, expected = step(model, whole, embedded=False)
    halves = [{key: value[i : i + 1] for key, value in whole.items()} for i in range(2)]
    found = [
        step(model, half | {"num_items_in_batch": count}, embedded=False)[1] for half in halves
    ]
    total = {name: found[0][name] + found[1][name] for name in expected}
    assert float(relative_errors(total, expected).max()) < 1e-5


# transformers.Trainer


@pytest.mark.filterwarnings("ignore")  # Trainer's own
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_trainer_of_transformers_sees_the_same_losses_in_chunks(tmp_path, label_smoothing):
    """With label smoothing it takes the logits and makes a loss of its own."""
    curves = []
    for lean in (True, False):
        model = attached(llama(), configured("lora"), lean)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to=[],
            max_steps=4,
            per_device_train_batch_size=3,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            gradient_accumulation_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            label_smoothing_factor=label_smoothing,
        )
        examples = ragged_examples(30, vocabulary=90)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=examples[:24],
            eval_dataset=examples[24:],
            data_collator=PadRight(2),
        )
        trainer.train()
        assert not lean or loss_of(model) == CHUNKED or label_smoothing
        history = copy.deepcopy(trainer.state.log_history)
        curves.append(
            [
                entry.get("loss", entry.get("eval_loss"))
                for entry in history
                if entry.keys() & {"loss", "eval_loss"}
            ]
        )
    assert len(curves[0]) == 6
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
