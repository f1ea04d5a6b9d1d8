"""Bottleneck adapters against the formulas of their papers, computed by hand in float64."""

import copy
import json

import peft
import pytest
import torch
from torch.nn import functional as F

import peftkit
from peftkit.errors import ConfigError, PeftkitError, TargetError
from tests.architectures import ARCHITECTURES
from tests.contract import output, shaken


def adapted(name, seed=0, **options):
    model = ARCHITECTURES[name].model(seed).double()
    options = {"bottleneck_dim": 5, "activation": "tanh", **options}
    return shaken(peftkit.attach(model, peftkit.BottleneckConfig(**options)), scale=0.3).double()


def branch(model, path, scale=1.0):
    """Return f of an adapter, from its weights alone: s (W_up tanh(W_down z + b) + b)."""
    weights = model.get_base_model().get_submodule(f"{path}.bottlenecks").state_dict()
    get = {key.replace(".default", ""): value for key, value in weights.items()}

    def f(z):
        down = torch.tanh(F.linear(z, get["bottleneck_down.weight"], get["bottleneck_down.bias"]))
        return scale * F.linear(down, get["bottleneck_up.weight"], get["bottleneck_up.bias"])

    return f


def llama_blocks(model, x, change):
    """Run Llama's blocks by hand; `change(i, x, u, part, normed)` gives what a sublayer adds, or
    the block's output.
    """
    body = model.get_base_model().model
    hidden = body.embed_tokens(x)
    rotary = body.rotary_emb(hidden, torch.arange(x.shape[1])[None])
    for i, layer in enumerate(body.layers):
        normed = layer.input_layernorm(hidden)
        u = plain(layer.self_attn)(
            hidden_states=normed, position_embeddings=rotary, attention_mask=None
        )[0]
        hidden = hidden + change(i, "attention", hidden, normed, u)
        normed = layer.post_attention_layernorm(hidden)
        hidden = hidden + change(i, "feed-forward", hidden, normed, plain(layer.mlp)(normed))
        hidden = change(i, "block", hidden, None, hidden)
    return model.get_base_model().lm_head(body.norm(hidden))


def plain(module):
    """Return a copy of a module without adapters."""
    bare = copy.deepcopy(module)
    for part in list(bare.modules()):
        part._forward_hooks.clear()
        vars(part).pop("forward", None)
        part._forward_pre_hooks.clear()
    return bare


PRE_NORM = {
    "houlsby": lambda f: lambda i, part, x, n, u: u if part == "block" else u + f(i, part)(u),
    "pfeiffer": lambda f: lambda i, part, x, n, u: u + f(i, part)(u) if part == "block" else u,
    "parallel": lambda f: (
        lambda i, part, x, n, u: u + f(i, part)(n) if part == "feed-forward" else u
    ),
    "residual": lambda f: (
        lambda i, part, x, n, u: u + f(i, part)(x) if part == "feed-forward" else u
    ),
}
LLAMA = {"attention": "self_attn.o_proj", "feed-forward": "mlp", "block": ""}


@pytest.mark.parametrize(
    ("formula", "options", "scale"),
    [
        ("houlsby", {"placement": "houlsby"}, 1.0),
        ("pfeiffer", {"placement": "pfeiffer"}, 1.0),
        ("parallel", {"placement": "parallel"}, 1.0),
        ("parallel", {"placement": "scaled_parallel"}, 4.0),
        ("parallel", {"placement": "parallel", "scale": 0.5}, 0.5),
        ("residual", {"placement": "parallel", "parallel_input": "residual"}, 1.0),
    ],
)
def test_a_bottleneck_in_a_pre_norm_block_computes_the_papers_formula(formula, options, scale):
    model, batch = adapted("llama", **options), ARCHITECTURES["llama"].batch(labels=False)

    def f(i, part):
        return branch(model, f"model.layers.{i}.{LLAMA[part]}".rstrip("."), scale)

    with torch.no_grad():
        expected = llama_blocks(model, batch["input_ids"], PRE_NORM[formula](f))
    torch.testing.assert_close(output(model, batch), expected, rtol=1e-10, atol=1e-10)


def bert_block(model):
    """Return a post-norm block, its name, its two sublayers without adapters, their writers and
    their norms.
    """
    block = model.get_base_model().bert.encoder.layer[0]
    attention, last = block.attention, block.output

    def attend(x):
        return plain(attention.output.dense)(attention.self(x)[0])

    def feed_forward(x):
        return plain(last.dense)(block.intermediate(x))

    return (
        block,
        "bert.encoder.layer.0",
        [(attend, "attention.output.dense"), (feed_forward, "output.dense")],
        [plain(attention.output.LayerNorm), plain(last.LayerNorm)],
    )


def bart_block(model):
    block = model.get_base_model().model.encoder.layers[0]
    return (
        block,
        "model.encoder.layers.0",
        [
            (lambda x: plain(block.self_attn)(hidden_states=x)[0], "self_attn.out_proj"),
            (lambda x: plain(block.fc2)(block.activation_fn(plain(block.fc1)(x))), "fc2"),
        ],
        [plain(block.self_attn_layer_norm), plain(block.final_layer_norm)],
    )


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize(("name", "parts"), [("bert", bert_block), ("bart", bart_block)])
def test_a_bottleneck_in_a_post_norm_block_computes_the_papers_formula(name, parts, placement):
    """N(x + u + f(u)) after both sublayers; N(s + f(N(s))) with s = x + u after the second; N(x + u
    + f(x)) beside it.
    """
    model = adapted(name, placement=placement)
    block, path, sublayers, norms = parts(model)
    given = torch.randn(2, 6, 32, dtype=torch.float64)
    with torch.no_grad():
        x = given
        for number, ((sublayer, writer), norm) in enumerate(zip(sublayers, norms, strict=True)):
            s = x + sublayer(x)
            if placement == "houlsby":
                s = s + branch(model, f"{path}.{writer}")(sublayer(x))
            elif placement == "parallel" and number == 1:
                s = s + branch(model, f"{path}.{writer}")(x)
            elif placement == "pfeiffer" and number == 1:
                s = s + branch(model, path)(norm(s))
            x = norm(s)
        found = block(given, attention_mask=None)
    found = found if isinstance(found, torch.Tensor) else found[0]
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)


def test_a_bottleneck_changes_a_sublayer_before_its_second_norm():
    """Gemma 3: x + N2(F(N1(x))); houlsby's u is F(N1(x)), which N2 then sees changed."""
    model = adapted("gemma3", placement="houlsby")
    layer = model.get_base_model().model.layers[0]
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        u = plain(layer.mlp)(x)
        torch.testing.assert_close(
            layer.mlp(x), u + branch(model, "model.layers.0.mlp")(u), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_bottleneck_reads_the_residual_under_gradient_checkpointing_too(name, reentrant):
    model = adapted(name, placement="parallel", parallel_input="residual")
    batch = ARCHITECTURES[name].batch()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients():
        model.train().zero_grad()
        model(**batch).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    backbone = model.get_base_model()
    enable = (
        getattr(backbone, "activation_checkpointing_enable", None)
        or backbone.gradient_checkpointing_enable
    )
    enable({"use_reentrant": reentrant})
    backbone.enable_input_require_grads()
    for found, value in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_reentrant_checkpointing_is_refused_for_a_bottleneck_that_closes_a_post_norm_block():
    model, batch = adapted("bert", placement="pfeiffer"), ARCHITECTURES["bert"].batch()
    backbone = model.get_base_model()
    enable = (
        getattr(backbone, "activation_checkpointing_enable", None)
        or backbone.gradient_checkpointing_enable
    )
    enable({"use_reentrant": True})
    backbone.enable_input_require_grads()
    with pytest.raises(PeftkitError, match="use_reentrant=False"):
        model.train()(**batch)


# Options


def test_a_learned_bottleneck_scale_starts_at_the_placements_scale_and_is_trained():
    model = peftkit.attach(
        ARCHITECTURES["llama"].model(),
        peftkit.BottleneckConfig(placement="scaled_parallel", scale="learned"),
    )
    scales = [p for key, p in model.named_parameters() if "bottleneck_scale" in key]
    assert [scale.item() for scale in scales] == [4.0, 4.0]
    shaken(model)(**ARCHITECTURES["llama"].batch()).loss.backward()
    assert all(scale.grad.abs() > 0 for scale in scales)


@pytest.mark.parametrize("init", ["houlsby", "bert"])
def test_the_papers_initialisations_of_bottlenecks_start_near_the_backbone(init):
    model, batch = ARCHITECTURES["bert"].model(), ARCHITECTURES["bert"].batch()
    before = output(model, batch)
    found = output(peftkit.attach(model, peftkit.BottleneckConfig(init_weights=init)), batch)
    assert 0 < (found - before).abs().max() < 0.1


def test_layer_norms_trained_with_a_bottleneck_are_saved_and_loaded(tmp_path):
    architecture = ARCHITECTURES["bert"]
    batch = architecture.batch()
    model, before = architecture.model(), output(architecture.model(), batch)
    adapted = shaken(
        peftkit.attach(model, peftkit.BottleneckConfig(placement="houlsby", train_layer_norms=True))
    )
    trained = [
        key for key, p in adapted.named_parameters() if p.requires_grad and "LayerNorm" in key
    ]
    assert len(trained) == 2 * 2 * 2  # blocks, norms, weight and bias
    with adapted.disable_adapter():
        assert torch.equal(output(adapted, batch), before)
    peftkit.save(adapted, tmp_path)
    assert torch.equal(
        output(peftkit.load(architecture.model(), tmp_path), batch), output(adapted, batch)
    )


def test_a_trained_norm_closes_the_block_of_a_bfloat16_backbone():
    """They are float32 copies behind casts: the block must still be seen to end in its norm."""
    model = ARCHITECTURES["bert"].model().to(torch.bfloat16)
    config = peftkit.BottleneckConfig(
        placement="pfeiffer", train_layer_norms=True, bottleneck_dim=5
    )
    model = shaken(peftkit.attach(model, config), scale=0.3)
    block = model.get_base_model().bert.encoder.layer[0]
    x = torch.randn(2, 6, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        found = block(x, attention_mask=None)
        found = (found if isinstance(found, torch.Tensor) else found[0]).float()
        norm = block.output.LayerNorm.modules_to_save["default"]
        normalised = (found - norm.bias) / norm.weight
    assert found.shape == (2, 6, 32)
    torch.testing.assert_close(normalised.mean(-1), torch.zeros(2, 6), rtol=0, atol=0.05)
    torch.testing.assert_close(normalised.std(-1), torch.ones(2, 6), rtol=0, atol=0.1)


def test_the_layers_and_width_of_bottlenecks_can_be_chosen():
    config = peftkit.BottleneckConfig(bottleneck_dim=3, layers_to_transform=[1], norm_before=True)
    model = peftkit.attach(ARCHITECTURES["llama"].model(), config)
    shapes = {
        key.split("layers.")[1]: tuple(p.shape)
        for key, p in model.named_parameters()
        if p.requires_grad
    }
    assert {key[0] for key in shapes} == {"1"}
    assert shapes["1.bottlenecks.bottleneck_down.default.weight"] == (3, 32)
    assert shapes["1.bottlenecks.bottleneck_norm.default.weight"] == (32,)


def test_the_modules_of_bottlenecks_can_be_named():
    config = peftkit.BottleneckConfig(placement="houlsby", target_modules=["o_proj"])
    model = peftkit.attach(ARCHITECTURES["llama"].model(), config)
    assert all("o_proj" in key for key, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(
        TargetError, match="'o_prj' matches no module of LlamaForCausalLM; did you mean 'o_proj'"
    ):
        peftkit.attach(
            ARCHITECTURES["llama"].model(), peftkit.BottleneckConfig(target_modules=["o_prj"])
        )
    with pytest.raises(TargetError, match="input_layernorm' is no place"):
        peftkit.attach(
            ARCHITECTURES["llama"].model(),
            peftkit.BottleneckConfig(target_modules=["input_layernorm"]),
        )
    with pytest.raises(TargetError, match="names layer 7, but LlamaForCausalLM has layers 0 to 1"):
        peftkit.attach(
            ARCHITECTURES["llama"].model(), peftkit.BottleneckConfig(layers_to_transform=[7])
        )


def test_everything_wrong_with_a_bottleneck_config_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        peftkit.BottleneckConfig(
            placement="pfeifer", bottleneck_dim=0, dropout=1, scale="learnt", activation="rellu"
        )
    for part in (
        "'pfeifer'; did you mean 'pfeiffer'",
        "bottleneck_dim is 0",
        "dropout is 1",
        "'learnt'",
        "'rellu'",
    ):
        assert part in str(caught.value)


def test_bottleneck_dropout_is_applied_in_training_only():
    model = shaken(
        peftkit.attach(ARCHITECTURES["llama"].model(), peftkit.BottleneckConfig(dropout=0.5))
    )
    batch = ARCHITECTURES["llama"].batch(labels=False)
    assert torch.equal(output(model, batch), output(model, batch))
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


# In the ecosystem


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_plain_peft_loads_a_bottleneck_file_and_refuses_to_merge_it(tmp_path):
    architecture = ARCHITECTURES["bart"]
    model, batch = (
        shaken(peftkit.attach(architecture.model(), peftkit.BottleneckConfig(placement="houlsby"))),
        architecture.batch(),
    )
    peftkit.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"
    plain_peft = peft.PeftModel.from_pretrained(architecture.model(), tmp_path)
    assert torch.equal(output(plain_peft, batch), output(model, batch))
    for attempt in (lambda: peftkit.merge(model), model.merge_and_unload):
        with pytest.raises(ConfigError, match="cannot be merged"):
            attempt()


def test_a_copy_of_a_model_has_its_own_bottlenecks():
    model, batch = adapted("bert"), ARCHITECTURES["bert"].batch()
    twin, before = copy.deepcopy(model), output(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    assert torch.equal(output(twin, batch), before)
    assert not torch.equal(output(model, batch), before)


def test_returned_hidden_states_are_those_that_the_next_block_read():
    model, batch = adapted("llama"), ARCHITECTURES["llama"].batch(labels=False)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        base = model.get_base_model()
        first = plain(base.model.layers[0])(
            states[0], position_embeddings=base.model.rotary_emb(states[0], torch.arange(8)[None])
        )
    torch.testing.assert_close(
        states[1], first + branch(model, "model.layers.0")(first), rtol=1e-10, atol=1e-10
    )
