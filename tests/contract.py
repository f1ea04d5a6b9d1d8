"""The pairs of method and architecture that the contract is tested on, and how to make each."""

import torch

import peftkit
from tests.architectures import ARCHITECTURES

METHODS = {
    "lora": lambda: peftkit.LoraConfig(r=4),
    "adalora": lambda: peftkit.AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=2, total_step=8),
    "houlsby": lambda: peftkit.BottleneckConfig(placement="houlsby", reduction_factor=4),
    "pfeiffer": lambda: peftkit.BottleneckConfig(placement="pfeiffer", reduction_factor=4),
    "scaled_parallel": lambda: peftkit.BottleneckConfig(
        placement="scaled_parallel", reduction_factor=4
    ),
    "prefix": lambda: peftkit.PrefixConfig(num_virtual_tokens=3),
}
# What cannot be, with a part of the sentence that says so.
REFUSED = {
    ("prefix", "mamba2"): "no attention",
    ("prefix", "convnext"): "no attention",
    ("prefix", "resnet"): "no attention",
    ("adalora", "resnet"): "no linear layer",
    ("houlsby", "convnext"): "placement='pfeiffer'",
    ("houlsby", "resnet"): "placement='pfeiffer'",
    ("scaled_parallel", "convnext"): "placement='pfeiffer'",
    ("scaled_parallel", "resnet"): "placement='pfeiffer'",
}
PAIRS = [
    (method, name) for name in ARCHITECTURES for method in METHODS if (method, name) not in REFUSED
]
MERGEABLE = [(method, name) for method, name in PAIRS if method in ("lora", "adalora")]
GENERATING = [
    (method, name)
    for method, name in PAIRS
    if ARCHITECTURES[name].task in ("causal-lm", "seq2seq-lm", "speech-seq2seq")
]


def attached(method, name, *, trained=True):
    """Return a model with an adapter; trained, its values are such as training leaves."""
    model = peftkit.attach(ARCHITECTURES[name].model(), METHODS[method]())
    return shaken(model) if trained else model.eval()


def shaken(model, scale=0.1):
    """Give every trained parameter a value that makes a difference, the same for the same model."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def output(model, batch):
    """Return the logits of a model in evaluation mode."""
    with torch.no_grad():
        return model.eval()(**batch).logits
