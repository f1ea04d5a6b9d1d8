"""QLoRA gradients against float64 through the dequantised weights, in peftkit and in plain PEFT.

    python -m benchmarks.gradients [OUTPUT.json]

For each storage and depth: the relative error of every adapter tensor's gradient (median and
worst), before and after one evaluation pass. The reference computes in float64 throughout, with the
weights that the quantised layers compute with.
"""

import copy
import json
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import peftkit
from peftkit.backbones.quantization import bitsandbytes_config, dequantized_weight, quantization_of
from peftkit.runs.process import environment

KINDS = ("nf4", "fp4", "int8")


def save_llama(path, layers):
    """Write a random bfloat16 Llama of width 256."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


def attached_by_peftkit(path, kind):
    """A peftkit model with an adapter whose weights are random on both sides."""
    model = peftkit.attach(peftkit.load_backbone(path, quantization=kind), peftkit.LoraConfig(r=8))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def attached_by_peft(path, kind, like):
    """The same backbone and adapter as plain transformers and PEFT make them."""
    config = bitsandbytes_config(kind, torch.bfloat16, double=True)
    backbone = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, quantization_config=config, device_map={"": like.device}
    )
    model = peft.get_peft_model(
        backbone, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    peft.set_peft_model_state_dict(model, peft.get_peft_model_state_dict(like))
    return model


def gradients(model, ids):
    """Every gradient of a training step, in float64, by the parameter's name."""
    model.train().zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {
        name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None
    }


def evaluate(model, ids):
    """One evaluation pass."""
    with torch.no_grad():
        model.eval()(input_ids=ids)


def reference(model, ids):
    """The same gradients in float64, through the dequantised weights."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = LlamaForCausalLM(config)
    state = {}
    for name, module in model.get_base_model().named_modules():
        if quantization_of(module):
            state[name.replace(".base_layer", "") + ".weight"] = dequantized_weight(module)
        elif (
            hasattr(module, "weight") and "lora_" not in name and not hasattr(module, "base_layer")
        ):
            state[name + ".weight"] = module.weight.data
    plain.load_state_dict({name: value.double() for name, value in state.items()}, strict=True)
    plain = plain.double().to(model.device)
    adapted = peft.get_peft_model(
        plain, copy.deepcopy(model.peft_config["default"]), autocast_adapter_dtype=False
    )
    peft.set_peft_model_state_dict(adapted, peft.get_peft_model_state_dict(model))
    return gradients(adapted.double(), ids)


def relative_errors(found, expected):
    """The relative error of each gradient tensor; 1 for one that is missing."""
    return torch.tensor(
        [
            float((found[k] - expected[k]).norm() / expected[k].norm()) if k in found else 1.0
            for k in expected
        ]
    )


def main():
    """Measure, print and write."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    rows = []
    for layers in (2, 12):
        with tempfile.TemporaryDirectory() as path:
            save_llama(path, layers)
            for kind in KINDS:
                ours = attached_by_peftkit(path, kind)
                ids = torch.randint(4, 320, (2, 24), generator=torch.Generator().manual_seed(0)).to(
                    ours.device
                )
                expected = reference(ours, ids)
                for who, model in (("peftkit", ours), ("peft", attached_by_peft(path, kind, ours))):
                    for when in ("before", "after"):
                        if when == "after":
                            evaluate(model, ids)
                        errors = relative_errors(gradients(model, ids), expected)
                        row = {
                            "layers": layers,
                            "storage": kind,
                            "library": who,
                            "evaluation": when,
                        }
                        rows.append(
                            row | {"median": float(errors.median()), "worst": float(errors.max())}
                        )
                        print(json.dumps(rows[-1]), flush=True)
    if len(sys.argv) > 1:
        result = {
            "command": "python -m benchmarks.gradients",
            "environment": environment(),
            "rows": rows,
        }
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
