"""Norms, activations and feed-forward layers are recognised, and nothing else is touched."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import GELUActivation

import peftkit
from peftkit.lean import Lean
from peftkit.lean.norms_and_feed_forwards import recompute_feed_forwards, recompute_norms
from tests.architectures import ARCHITECTURES
from tests.conftest import llama_config
from tests.lean.step import assert_same, attached, batch, configured, relative_errors, step

WIDTH, INNER = 16, 24
PARTS_ONLY = Lean(layers=False, loss=False)


def built(family, model_class, **settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tokens = {"num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return getattr(transformers, model_class)(
        getattr(transformers, f"{family}Config")(**sizes | tokens | settings)
    )


MODELS = {
    "llama": lambda: ARCHITECTURES["llama"].model(),
    "gemma": lambda: built("Gemma", "GemmaForCausalLM", num_key_value_heads=2, head_dim=8),
    "gemma3": lambda: ARCHITECTURES["gemma3"].model(),
    "qwen2": lambda: built("Qwen2", "Qwen2ForCausalLM", num_key_value_heads=2),
    "qwen3": lambda: ARCHITECTURES["qwen3"].model(),
    "phi3": lambda: built("Phi3", "Phi3ForCausalLM", num_key_value_heads=2),
    "glm": lambda: built("Glm", "GlmForCausalLM", num_key_value_heads=2, head_dim=8),
    "gpt_neox": lambda: ARCHITECTURES["gpt_neox"].model(),
    "gpt2": lambda: ARCHITECTURES["gpt2"].model(),
    "bert": lambda: ARCHITECTURES["bert"].model(),
    "bart": lambda: ARCHITECTURES["bart"].model(),
    "t5": lambda: ARCHITECTURES["t5"].model(),
    "flan-t5": lambda: ARCHITECTURES["flan-t5"].model(),
    "bloom": lambda: ARCHITECTURES["bloom"].model(),
    "mixtral": lambda: ARCHITECTURES["mixtral"].model(),
    "vit": lambda: ARCHITECTURES["vit"].model(),
}
# Modules of how many of which classes keep what they read, or what their first layers give.
FEED_FORWARD = {
    "llama": {"LlamaMLP": 2},
    "gemma": {"GemmaMLP": 2},
    "gemma3": {"Gemma3MLP": 2},
    "qwen2": {"Qwen2MLP": 2},
    "qwen3": {"Qwen3MLP": 2},
    "phi3": {"Phi3MLP": 2},
    "glm": {"GlmMLP": 2},
    "gpt_neox": {"GPTNeoXMLP": 2},
    "gpt2": {"NewGELUActivation": 2},
    "bert": {"GELUActivation": 2},
    "bart": {"GELUActivation": 4},
}


def changed(model):
    """The classes of modules with another forward pass, and their number."""
    found = {}
    for module in model.modules():
        if "forward" in vars(module):
            found[type(module).__name__] = found.get(type(module).__name__, 0) + 1
    return found


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_the_feed_forward_layers_of_a_model_are_recognised(name):
    model = MODELS[name]()
    count = recompute_feed_forwards(model)
    assert changed(model) == FEED_FORWARD[name]
    assert count == sum(FEED_FORWARD[name].values())


def test_a_feed_forward_part_that_drops_out_in_the_middle_is_left_alone():
    """T5's. And ReLU, its activation, keeps nothing but its output; so does the Tanh of BERT's
    pooler.
    """
    for name in ("t5", "flan-t5"):
        model = MODELS[name]()
        recompute_feed_forwards(model)
        assert not {"T5DenseActDense", "T5DenseGatedActDense"} & changed(model).keys()


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "gpt2", "bloom", "flan-t5"])
def test_the_norms_of_a_model_are_recognised(name):
    model = MODELS[name]()
    norms = [part for part in model.modules() if type(part).__name__.endswith("Norm")]
    assert recompute_norms(model) == len(norms) > 2
    assert all("forward" in vars(norm) for norm in norms)


def test_norms_with_running_statistics_are_left_alone():
    assert (
        recompute_norms(nn.Sequential(nn.BatchNorm1d(4), nn.InstanceNorm1d(4), nn.Conv1d(4, 4, 1)))
        == 0
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_step_with_recomputed_norms_and_feed_forwards_differs_by_rounding_only(name):
    """A norm that reads its input twice adds two gradients up before they meet the residual's, and
    no more than that.
    """
    causal = ARCHITECTURES[name].task == "causal-lm" if name in ARCHITECTURES else True
    inputs = batch(vocabulary=90, tokens=12) if causal else ARCHITECTURES[name].batch()
    lean, plain = (
        attached(MODELS[name](), configured("lora"), each) for each in (PARTS_ONLY, False)
    )
    (loss, found), (expected_loss, expected) = (
        step(each, inputs, embedded=False) for each in (lean, plain)
    )
    assert torch.equal(loss, expected_loss)
    present = [key for key, value in expected.items() if float(value.norm())]
    errors = relative_errors(
        {key: found[key] for key in present}, {key: expected[key] for key in present}
    )
    assert float(errors.max()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "bart", "flan-t5"])
def test_a_step_with_recomputed_feed_forwards_is_the_same_bit_for_bit(name):
    causal = ARCHITECTURES[name].task == "causal-lm" if name in ARCHITECTURES else True
    inputs = batch(vocabulary=90, tokens=12) if causal else ARCHITECTURES[name].batch()
    lean = Lean(layers=False, loss=False, norms=False)
    assert_same(
        *(
            step(attached(MODELS[name](), configured("lora"), each), inputs, embedded=False)
            for each in (lean, False)
        )
    )


# what only looks like a feed-forward part


class Gated(nn.Module):
    """One that is what it looks like."""

    def __init__(self, gates=WIDTH, outputs=WIDTH):
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.down, self.act = nn.Linear(INNER, WIDTH), nn.SiLU()

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


def looks_like(forward, **more):
    """A class with Gated's layers and another forward pass."""
    return type("Impostor", (Gated,), {"forward": forward, **more})


class Remembers(Gated):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.down(self.act(self.gate(x)) * self.up(x) * (1 + self.calls % 2))


IMPOSTORS = {
    "adds its input": lambda self, x: x + self.down(self.act(self.gate(x)) * self.up(x)),
    "adds its input in the middle": lambda self, x: self.down(
        self.act(self.gate(x)) * self.up(x) + x.mean()
    ),
    "reads the shape of a mean": lambda self, x: self.down(
        self.gate(x) * self.up(x) / x.norm(dim=-1, keepdim=True)
    ),
    "drops out": lambda self, x: self.down(
        F.dropout(self.gate(x) * self.up(x), 0.5, self.training)
    ),
    "calls a layer twice": lambda self, x: self.down(self.gate(x) * self.up(x) + self.gate(x)),
    "calls the last twice": lambda self, x: self.down(self.gate(x)) + self.down(self.up(x)),
    "leaves a layer out": lambda self, x: self.down(self.gate(x)),
    "reads something else": lambda self, x: self.down(self.gate(x) * self.up(x + 1)),
    "reads one after the other": lambda self, x: self.down(
        self.gate(x) * self.up(self.gate(x)[..., :WIDTH])
    ),
    "scales the end": lambda self, x: 2 * self.down(self.gate(x) * self.up(x)),
    "reads a weight": lambda self, x: F.linear(self.gate(x) * self.up(x), self.down.weight),
    "takes more": lambda self, x, residual: self.down(self.gate(x) * self.up(x)) + residual,
    "returns a tuple": lambda self, x: (self.down(self.gate(x) * self.up(x)), None),
}


@pytest.mark.parametrize("why", IMPOSTORS)
def test_a_module_that_only_looks_like_a_feed_forward_layer_is_left_alone(why):
    module = looks_like(IMPOSTORS[why])()
    module.act = nn.Identity()
    state = torch.get_rng_state()
    assert recompute_feed_forwards(module) == 0
    assert not changed(module)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_feed_forward_layer_with_dropout_weights_or_a_state_of_its_own_is_left_alone():
    for other in (nn.Dropout(0.1), nn.LayerNorm(INNER), nn.PReLU()):
        module = Gated()
        module.act = other
        assert "Gated" not in changed_by(module)
    assert recompute_feed_forwards(Remembers()) <= 1  # its act, a SiLU, is one by itself
    with_weight = Gated()
    with_weight.scale = nn.Parameter(torch.ones(3))
    assert "Gated" not in changed_by(with_weight)
    assert changed_by(Gated()) == {"Gated": 1}


def changed_by(module):
    recompute_feed_forwards(module)
    return changed(module)


def test_hooks_on_the_layers_of_a_recomputed_feed_forward_run_and_replaced_layers_count():
    module, twin = Gated().requires_grad_(False), None
    twin = copy.deepcopy(module)
    recompute_feed_forwards(module)
    heard = []
    for each in (module, twin):
        each.down.register_forward_hook(lambda *_: heard.append("down"))
        each.register_forward_hook(lambda _, __, output: output + 1)
    x = torch.randn(3, WIDTH, requires_grad=True)
    assert torch.equal(module(x), twin(x))
    assert heard == ["down", "down"]
    module.gate = nn.Linear(WIDTH, INNER)  # as PEFT puts another in a layer's place
    twin.gate = module.gate
    assert torch.equal(module(x), twin(x))


def test_an_activation_that_writes_into_what_it_reads_is_left_alone():
    layers = nn.Sequential(nn.SiLU(inplace=True), nn.SiLU(), GELUActivation())
    assert recompute_feed_forwards(layers) == 2
    assert "forward" not in vars(layers[0])


def test_a_norm_whose_forward_somebody_else_has_replaced_is_left_alone():
    norm = nn.LayerNorm(WIDTH)
    norm.forward = own = norm.forward
    assert recompute_norms(norm) == 0
    assert vars(norm)["forward"] is own


@pytest.mark.parametrize("name", MODELS)
def test_recognising_norms_and_feed_forwards_moves_no_random_number(name):
    torch.manual_seed(3)
    model = MODELS[name]()
    state = torch.get_rng_state()
    recompute_norms(model)
    recompute_feed_forwards(model)
    assert torch.equal(torch.get_rng_state(), state)


# copies


def small_llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(llama_config(vocab_size=96))


@pytest.mark.parametrize("method", ["lora", "pfeiffer"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_deep_copy_of_a_lean_model_is_independent_of_the_original(method, asked):
    """Its norms, its feed-forward parts and its loss are its own, whatever becomes of the other."""
    inputs = batch(vocabulary=90)
    model = attached(small_llama(), configured(method), True)
    expected = step(model, inputs)
    if not asked:
        model = attached(small_llama(), configured(method), True)
    twin = copy.deepcopy(model)
    assert_same(step(twin, inputs), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert_same(step(twin, inputs), expected)
    bare = peftkit.detach(model)
    assert not changed(bare)
    assert_same(step(twin, inputs), expected)
    other = peftkit.detach(twin)
    assert not changed(other)
    plain = small_llama()
    ids = inputs["input_ids"]
    assert torch.equal(other.eval()(ids).logits, plain.eval()(ids).logits)


def test_detaching_a_copy_leaves_the_original_lean():
    inputs = batch(vocabulary=90)
    model = attached(small_llama(), configured("lora"), True)
    expected = step(model, inputs)
    peftkit.detach(copy.deepcopy(model))
    assert_same(step(model, inputs), expected)


def test_a_lean_model_that_is_pickled_and_read_again_takes_the_same_step(tmp_path):
    inputs = batch(vocabulary=90)
    model = attached(small_llama(), configured("lora"), True)
    expected = step(model, inputs)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_same(step(again, inputs), expected)
    assert changed(again) == changed(model)


def test_feed_forward_layers_are_recognised_in_a_model_without_weights():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with torch.device("meta"):
        model = peftkit.attach(LlamaForCausalLM(config), peftkit.LoraConfig(r=2))
    assert peftkit.record(model)["lean"]["feed_forward"] == 1
