"""One training step of one small model, lean or not: its loss and all its gradients."""

import contextlib
import copy

import peft
import torch
from torch import nn

import peftkit
from peftkit.backbones.quantization import dequantized_weight, quantization_of
from tests.contract import METHODS, shaken

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORAGES = [*DTYPES, "nf4", "fp4", "int8"]


def stored(storage, llama_dir):
    """The small Llama in a dtype, or quantised."""
    dtype, quantization = (
        DTYPES.get(storage, torch.bfloat16),
        None if storage in DTYPES else storage,
    )
    return peftkit.load_backbone(llama_dir, quantization=quantization, dtype=dtype)


def configured(method, **changes):
    """The contract's config for a method, with other fields."""
    config = METHODS[method]()
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config


def attached(backbone, config, lean, scale=0.1):
    """A model in training mode whose adapter has values that make a difference, the same for every
    `lean`.
    """
    torch.manual_seed(0)
    return shaken(peftkit.attach(backbone, config, lean=lean), scale).train()


def batch(seed=0, tokens=24, rows=2, vocabulary=320):
    """Token ids, and labels of which some are ignored."""
    ids = torch.randint(
        4, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed)
    )
    labels = ids.clone()
    labels[0, :5] = -100
    labels[:, -1] = -100
    return {"input_ids": ids, "labels": labels}


def step(model, inputs, *, seed=1, autocast=None, checkpointing=False, embedded=True):
    """The loss, and every gradient in float64 by name; the embedded input's is ``"input"``."""
    model.train().zero_grad()
    if checkpointing:
        backbone = model.get_base_model()
        enable = (
            getattr(backbone, "activation_checkpointing_enable", None)
            or backbone.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    inputs = dict(inputs)
    if embedded:
        with torch.no_grad():
            embedding = nn.Module.__call__(model.get_input_embeddings(), inputs.pop("input_ids"))
        inputs["inputs_embeds"] = embedding.detach().requires_grad_()
    torch.manual_seed(seed)
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        loss = model(**inputs).loss
    loss.backward()
    found = {
        name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None
    }
    if embedded:
        found["input"] = inputs["inputs_embeds"].grad.double()
    return loss.detach(), found


def reference(model):
    """The same model and adapter in float64, with the weights that the layers of `model` compute
    with, and nothing lean.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    base = model.get_base_model()
    plain = type(base)(config).double()
    values = {}
    for name, module in base.named_modules():
        name = name.replace(".base_layer", "")
        if quantization_of(module):
            values[f"{name}.weight"] = dequantized_weight(module)
        else:
            values |= {
                f"{name}.{key}": value
                for key, value in module.state_dict().items()
                if "." not in key
            }
    kept = {
        key: values[key].double() if values[key].is_floating_point() else values[key]
        for key in plain.state_dict()
    }
    plain.load_state_dict(kept)
    double = peftkit.attach(plain, copy.deepcopy(model.peft_config["default"]), lean=False).double()
    peft.set_peft_model_state_dict(double, peft.get_peft_model_state_dict(model))
    return double


def relative_errors(found, expected):
    """The relative error of each gradient tensor."""
    assert found.keys() == expected.keys()
    assert all(float(value.norm()) for value in expected.values())
    return torch.stack(
        [(found[name] - value).norm() / value.norm() for name, value in expected.items()]
    )


def median_error(model, exact, batches, **how):
    """The median over batches and tensors of the relative error of a gradient, beside the float64
    of `exact`.
    """
    double = how | {"autocast": None, "checkpointing": False}
    errors = [
        relative_errors(step(model, one, **how)[1], step(exact, one, **double)[1])
        for one in batches
    ]
    return float(torch.cat(errors).median())


def assert_same(one, other):
    """Assert that two steps are equal bit for bit."""
    (loss, found), (expected_loss, expected) = one, other
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not different, f"{len(different)} of {len(expected)}: {different[:4]}"
    assert torch.equal(loss, expected_loss)
