"""Check what a finished chat run has left: the adapter in peftkit and in plain PEFT, and the merged model.

python benchmarks/check_run.py runs/quickstart [OUTPUT.json]
"""

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

import peftkit
from peftkit.config import build, load_yaml
from peftkit.data.loading import load_rows
from peftkit.data.questions import fact_accuracy, questions
from peftkit.generation import answer
from peftkit.sections import DataSettings, ModelSettings
from peftkit.training.process import environment, prepare_process


def logits(model, tokenizer, prompts):
    """The logits of a batch of prompts."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    with torch.no_grad():
        return model.eval()(**batch).logits


def main():
    """Compare, print and write."""
    prepare_process()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    run = Path(sys.argv[1])
    config = load_yaml(run / "config.yaml")
    model_settings = build(ModelSettings, config["model"], "model")
    data = build(DataSettings, config["data"], "data")
    tokenizer = peftkit.load_tokenizer(model_settings.source)
    rows, kind = load_rows(data, data.evaluation)
    asked = questions(rows, kind, tokenizer, system=data.system)
    prompts = [question.prompt for question in asked]

    backbone = peftkit.load_backbone(**model_settings.arguments())
    model = peftkit.load(backbone, run / "adapter")
    ours = logits(model, tokenizer, prompts[:16])
    answers = answer(model, tokenizer, prompts, max_new_tokens=config["max_new_tokens"])
    model = peft.PeftModel.from_pretrained(peftkit.detach(model), run / "adapter")
    result = {
        "peft_logits_identical": torch.equal(logits(model, tokenizer, prompts[:16]), ours),
        "adapter": fact_accuracy(asked, answers),
    }
    if (run / "merged").exists():
        merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.bfloat16)
        merged_answers = answer(merged, tokenizer, prompts, max_new_tokens=config["max_new_tokens"])
        result["merged"] = fact_accuracy(asked, merged_answers)
        result["merged_same_to_the_letter"] = sum(a == b for a, b in zip(answers, merged_answers, strict=True))
        result["questions"] = len(asked)
    result["environment"] = environment()
    print(json.dumps(result, indent=1))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
