"""The pairs of method and architecture that the contract is tested on, and how to make each."""

import torch

import peftkit
from peftkit.methods.method import all_methods, variants
from tests.architectures import ARCHITECTURES

METHODS = {name: variant.small for name, variant in variants().items()}
METHOD_OF = {name: method for method in all_methods() for name in method.variants}
# What these architectures do not have, in the words of the sentence that refuses a method.
LACKS = {
    "mamba2": {"attention"},
    "convnext": {"attention", "feed-forward layer"},
    "resnet": {"attention", "feed-forward layer", "linear layer"},
}
REFUSED = {}
for _name, _lacking in LACKS.items():
    for _method, _variant in variants().items():
        if _variant.needs in _lacking:
            REFUSED[_method, _name] = _variant.needs
PAIRS = [
    (method, name) for name in ARCHITECTURES for method in METHODS if (method, name) not in REFUSED
]
MERGEABLE = [(method, name) for method, name in PAIRS if METHOD_OF[method].settings.merges]
GENERATING = [
    (method, name)
    for method, name in PAIRS
    if ARCHITECTURES[name].task in ("causal-lm", "seq2seq-lm", "speech-seq2seq")
]


def attached(method, name, *, trained=True):
    """Return a model with an adapter; trained, its values are such as training leaves."""
    model = peftkit.attach(ARCHITECTURES[name].model(), METHODS[method]())
    return shaken(model) if trained else model.eval()


def frozen(model):
    """Freeze a backbone, as attaching will: torch picks a kernel by whether a weight is trained."""
    return model.requires_grad_(False)


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
