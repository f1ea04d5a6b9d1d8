"""Anatomy finds what is there: in models whose structure is known, and in forty architectures."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.anatomy import (
    attentions,
    fused_experts,
    is_convolutional,
    is_linear,
    left_alone,
    linear_layers,
    output_modules,
    stacks,
    task_head,
    task_type,
)
from tests.architectures import ARCHITECTURES

FOUND = {  # of the first block of each stack: kind, what it reads from, what writes
    "llama": [("attention", "self_attn", "self_attn.o_proj"), ("feed-forward", "mlp", "mlp")],
    "gpt2": [("attention", "attn", "attn.c_proj"), ("feed-forward", "mlp", "mlp")],
    "bert": [
        ("attention", "attention", "attention.output.dense"),
        ("feed-forward", "intermediate.dense", "output.dense"),
    ],
    "bart": [("attention", "self_attn", "self_attn.out_proj"), ("feed-forward", "fc1", "fc2")],
    "t5": [
        ("attention", "layer.0", "layer.0.SelfAttention.o"),
        ("feed-forward", *["layer.1.DenseReluDense"] * 2),
    ],
    "albert": [
        ("attention", "attention", "attention.dense"),
        ("feed-forward", "ffn", "ffn_output"),
    ],
    "xlnet": [("feed-forward", "ff.layer_1", "ff.layer_2")],
    "mixtral": [("attention", "self_attn", "self_attn.o_proj"), ("feed-forward", "mlp", "mlp")],
    "deepseek_v3": [("attention", "self_attn", "self_attn.o_proj"), ("feed-forward", "mlp", "mlp")],
    "mamba2": [("mixer", "mixer", "mixer")],
    "qwen3_next": [
        ("mixer", "linear_attn", "linear_attn.out_proj"),
        ("feed-forward", "mlp", "mlp"),
    ],
    "swin": [("attention", "attention", "attention.o_proj"), ("feed-forward", "mlp", "mlp")],
    "resnet": [],
}


@pytest.mark.parametrize("name", FOUND)
def test_sublayers_are_found_by_structure(name):
    block = stacks(ARCHITECTURES[name].model())[0].blocks[0]
    near = f"{block.name}."
    found = [
        (part.kind, part.source.removeprefix(near), part.writer.removeprefix(near))
        for part in block.sublayers
    ]
    assert found == FOUND[name]


def test_an_encoder_decoder_has_two_stacks_and_cross_attention_in_the_second():
    encoder, decoder = stacks(ARCHITECTURES["bart"].model())
    assert (encoder.name, decoder.name) == ("model.encoder.layers", "model.decoder.layers")
    assert [part.kind for part in decoder.blocks[0].sublayers] == [
        "attention",
        "cross-attention",
        "feed-forward",
    ]


def test_a_vision_language_model_has_a_stack_for_each_tower():
    names = [stack.name for stack in stacks(ARCHITECTURES["llava"].model())]
    assert len(names) == 2
    assert "vision" in names[0]
    assert "language" in names[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_writer_of_a_sublayer_puts_out_the_width_that_anatomy_states(name):
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    blocks = [block for stack in stacks(model) for block in stack.blocks]
    widths = {part.writer: part.width for block in blocks for part in block.sublayers} | {
        b.name: b.width for b in blocks
    }
    assert blocks
    seen = {}

    def watch(key):
        def hook(module, args, output):
            seen[key] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    for key in widths:
        model.get_submodule(key).register_forward_hook(watch(key))
    with torch.no_grad():
        model(**architecture.batch())
    assert seen
    for key, output in seen.items():
        assert widths[key] in (output.shape[-1], output.shape[1]), key


@pytest.mark.parametrize(
    "name",
    ["llama", "falcon", "mixtral", "deepseek_v3", "gpt_oss", "bert", "t5", "whisper", "swin"],
)
def test_key_value_groups_and_head_widths_are_those_of_the_config(name):
    model = ARCHITECTURES[name].model()
    config = model.config
    for site in attentions(model):
        if name == "deepseek_v3":
            assert (site.key_width, site.value_width) == (12, 8)
        elif name != "swin":
            heads = getattr(config, "num_attention_heads", None) or config.num_heads
            assert site.heads == heads
            groups = (
                1 if name == "falcon" else getattr(config, "num_key_value_heads", None) or heads
            )
            assert site.groups == groups


def test_task_heads_and_output_embeddings_are_not_among_the_linear_layers():
    for name, head in (
        ("bert", "classifier"),
        ("distilbert", "pre_classifier"),
        ("clip", "classifier"),
        ("resnet", "classifier"),
    ):
        model = ARCHITECTURES[name].model()
        assert head in task_head(model)
        assert not [
            layer for layer in linear_layers(model) if layer.startswith(tuple(task_head(model)))
        ]
    llama = ARCHITECTURES["llama"].model()
    assert not task_head(llama)
    assert next(output_modules(llama)) is llama.lm_head
    assert "lm_head" not in linear_layers(llama)


def test_a_model_that_takes_no_tokens_has_no_peft_task_type():
    assert task_type(ARCHITECTURES["llama"].model()) == "CAUSAL_LM"
    assert task_type(ARCHITECTURES["t5"].model()) == "SEQ_2_SEQ_LM"
    assert task_type(ARCHITECTURES["bert-token"].model()) == "TOKEN_CLS"
    assert task_type(ARCHITECTURES["whisper"].model()) is None


def meta(kind):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, num_hidden_layers=2))


def test_layers_whose_weight_a_kernel_reads_are_left_alone_with_a_reason():
    """Mamba multiplies with dt_proj.weight itself: what LoRA adds to the layer's output would never
    be seen.
    """
    model = meta("mamba")
    ((reason, names),) = left_alone(model).items()
    assert "without calling the layer" in reason
    assert {name.rpartition(".")[2] for name in names} == {"x_proj", "dt_proj", "out_proj"}
    assert {name.rpartition(".")[2] for name in linear_layers(model)} == {"in_proj"}


def test_routers_that_return_tuples_and_fused_experts_are_left_alone():
    model = meta("phimoe")
    found = {name.rpartition(".")[2] for names in left_alone(model).values() for name in names}
    assert found == {"router", "gate_up_proj", "down_proj"}
    assert "model.layers.0.mlp.experts.gate_up_proj" in fused_experts(model)


def test_linear_conv1d_and_quantised_layers_are_all_linear():
    for name, expected in (
        ("gpt2", 8),
        ("falcon", 8),
    ):  # Conv1D; a subclass with a forward of its own
        assert len(linear_layers(ARCHITECTURES[name].model())) == expected
    assert is_linear(nn.Linear(2, 2))


def test_a_model_without_attention_is_a_convolutional_network():
    assert is_convolutional(ARCHITECTURES["resnet"].model())
    assert is_convolutional(ARCHITECTURES["convnext"].model())
    assert not is_convolutional(ARCHITECTURES["swin"].model())
    assert not is_convolutional(ARCHITECTURES["whisper"].model())
