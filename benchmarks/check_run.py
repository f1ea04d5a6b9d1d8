"""Check a finished chat run: its adapter in peftkit and in plain PEFT, and the merged model.

python -m benchmarks.check_run runs/quickstart [OUTPUT.json]
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

import peftkit
from peftkit.runs.opening import open_run
from peftkit.runs.process import environment, prepare_process
from peftkit.tasks.generation import answer


def logits(model, tokenizer, prompts):
    """The logits of a batch of prompts."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(
        model.device
    )
    with torch.no_grad():
        return model.eval()(**batch).logits


def main():
    """Compare, print and write."""
    prepare_process()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    run = open_run(sys.argv[1])
    task: Any = run.task  # of a causal language model
    options = run.config.generation.options()
    rows = task.measured_rows(task.read(run.held_out()))
    prompts = [task.question(row).prompt for row in rows]

    model = run.model()
    ours = logits(model, task.processor, prompts[:16])
    answers = answer(model, task.processor, prompts, **options)
    model = peft.PeftModel.from_pretrained(peftkit.detach(model), run.adapter)
    result = {
        "peft_logits_identical": torch.equal(logits(model, task.processor, prompts[:16]), ours),
        "adapter": task.measure(rows, answers).metrics,
    }
    if (run.directory / "merged").exists():
        merged = AutoModelForCausalLM.from_pretrained(
            run.directory / "merged", dtype=torch.bfloat16
        )
        merged_answers = answer(merged, task.processor, prompts, **options)
        result["merged"] = task.measure(rows, merged_answers).metrics
        result["merged_same_to_the_letter"] = sum(
            a == b for a, b in zip(answers, merged_answers, strict=True)
        )
        result["questions"] = len(rows)
    result["environment"] = environment()
    print(json.dumps(result, indent=1))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
