"""Answer prompts in batches, greedily: what evaluation and samples need."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """Return the model's greedy continuation of each rendered prompt, without special tokens.

    The model is left in the mode in which it came.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer; prompts are taken as rendered, no token is added.
        prompts: Rendered prompts, e.g. from `peftkit.data.rendering.prompt_text`.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts answered at a time.
    """
    answers: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    training, side = model.training, tokenizer.padding_side
    model.eval()
    tokenizer.padding_side = "left"
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}),
    )
    try:
        for start in range(0, len(prompts), batch_size):
            numbers = by_length[start : start + batch_size]
            texts = [prompts[i] for i in numbers]
            batch = tokenizer(
                texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
            )
            batch = batch.to(next(model.parameters()).device)
            with torch.inference_mode():
                ids = model.generate(**batch, generation_config=config)  # type: ignore[operator]
            new = ids[:, batch["input_ids"].shape[1] :]
            answers |= zip(numbers, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True)
    finally:
        model.train(training)
        tokenizer.padding_side = side
    return [answers[i].strip() for i in range(len(prompts))]
