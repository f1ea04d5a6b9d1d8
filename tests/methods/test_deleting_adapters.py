"""PEFT's ``delete_adapter`` leaves nothing of an adapter on the model."""

from collections.abc import Collection

import pytest
import torch

import peftkit
from tests.architectures import ARCHITECTURES
from tests.contract import METHODS, output, shaken


def mentions(model, adapter):
    """Return the attributes of modules that hold something under the name of an adapter."""
    found = []
    for path, module in model.named_modules():
        if adapter in path.split("."):
            found.append(path)
        for attribute, value in vars(module).items():
            if isinstance(value, Collection) and adapter in value:
                found.append(f"{path}.{attribute}")
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_deleted_adapter_leaves_no_entry_in_any_module(method):
    architecture = ARCHITECTURES["llama"]
    batch = architecture.batch(labels=False)
    model = shaken(peftkit.attach(architecture.model(), METHODS[method]()))
    before = output(model, batch)
    second = METHODS[method]()
    second.inference_mode = True  # PEFT allows one trainable AdaLoRA adapter
    model.add_adapter("second", second)
    assert mentions(model, "second")
    model.delete_adapter("second")
    assert mentions(model, "second") == []
    assert torch.equal(output(model, batch), before)
