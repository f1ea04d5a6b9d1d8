"""A float model needs no bitsandbytes, and a quantised one none of its private functions."""

import subprocess
import sys

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit

import peftkit
from peftkit.backbones.cpu_weight_repacking import prevent_cpu_repacking
from peftkit.errors import BackboneError
from tests.conftest import logits

ATTACH_AND_LOAD = """
import sys
sys.modules["bitsandbytes"] = None  # importing it fails
import torch, peftkit
ids = torch.arange(8).unsqueeze(0) + 4
for config in (peftkit.LoraConfig(r=2), peftkit.BottleneckConfig(), peftkit.PrefixConfig()):
    model = peftkit.attach(peftkit.load_backbone(sys.argv[1]), config)
    model(input_ids=ids, labels=ids).loss.backward()
    peftkit.save(model, sys.argv[2])
    again = peftkit.load(peftkit.load_backbone(sys.argv[1]), sys.argv[2])
    print(torch.equal(model.eval()(ids).logits, again.eval()(ids).logits))
"""


@pytest.fixture
def no_unpacking(monkeypatch):
    monkeypatch.delattr(bitsandbytes.functional, "_convert_weight_packed_for_cpu_inverse")


def test_a_float_model_attaches_trains_saves_and_loads_where_bitsandbytes_cannot_be_imported(
    llama_dir, tmp_path
):
    words = [sys.executable, "-c", ATTACH_AND_LOAD, str(llama_dir), str(tmp_path / "adapter")]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True"] * 3


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_model_trains_without_the_private_unpacking(kind, llama_dir, no_unpacking):
    ids = torch.arange(8).unsqueeze(0) + 4
    backbone = peftkit.load_backbone(llama_dir, quantization=kind)
    logits(backbone, ids)
    model = peftkit.attach(backbone, peftkit.LoraConfig(r=2))
    model(input_ids=ids, labels=ids).loss.backward()


def test_repacked_weights_without_the_private_unpacking_are_a_clear_error(llama_dir, no_unpacking):
    model = peftkit.load_backbone(llama_dir, quantization="nf4")
    layer = next(module for module in model.modules() if isinstance(module, Linear4bit))
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BackboneError, match="cannot unpack them: load the backbone with"):
        prevent_cpu_repacking(model)
