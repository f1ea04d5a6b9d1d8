"""Answer prompts in batches: what evaluation and samples need."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    TextIteratorStreamer,
)


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    **options: Any,
) -> list[str]:
    """Return the model's continuation of each rendered prompt, without special tokens; greedy
    unless `options` say otherwise.

    The model is left in the mode in which it came.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer; prompts are taken as rendered, no token is added.
        prompts: Rendered prompts, e.g. from `peftkit.data.supervised_tokens.render_prompt`.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts answered at a time.
        options: Fields of transformers' GenerationConfig, e.g. ``num_beams=4``.
    """
    answers: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    training, side = model.training, tokenizer.padding_side
    model.eval()
    tokenizer.padding_side = "left"
    config = _config(model, tokenizer, max_new_tokens=max_new_tokens, **options)
    try:
        for start in range(0, len(prompts), batch_size):
            numbers = by_length[start : start + batch_size]
            texts = [prompts[i] for i in numbers]
            batch = tokenizer(
                texts,
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
                return_token_type_ids=False,
            )
            batch = batch.to(next(model.parameters()).device)
            with torch.inference_mode():
                ids = model.generate(**batch, generation_config=config)  # type: ignore[operator]
            new = ids[:, batch["input_ids"].shape[1] :]
            answers |= zip(
                numbers, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
            )
    finally:
        model.train(training)
        tokenizer.padding_side = side
    return [answers[i].strip() for i in range(len(prompts))]


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    **options: Any,
) -> Iterator[str]:
    """Yield the model's continuation of a rendered prompt in pieces, as they are written; closing
    the iterator ends it.

    Args:
        model: A causal language model, with or without an adapter; it is left in evaluation mode.
        tokenizer: Its tokenizer; the prompt is taken as rendered.
        prompt: A rendered prompt.
        max_new_tokens: Longest answer, in tokens.
        options: Fields of transformers' GenerationConfig.
    """
    batch = tokenizer(
        prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False
    )
    batch = batch.to(next(model.parameters()).device)
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    config = _config(model, tokenizer, max_new_tokens=max_new_tokens, **options)
    model.eval()
    failures: list[BaseException] = []
    stopped = threading.Event()

    def is_stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), stopped.is_set(), device=ids.device)

    def write() -> None:
        try:
            model.generate(  # type: ignore[operator]
                **batch,
                generation_config=config,
                streamer=pieces,
                stopping_criteria=StoppingCriteriaList([is_stopped]),
            )
        except BaseException as problem:
            failures.append(problem)
            pieces.end()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield from pieces
    finally:
        stopped.set()
        thread.join()
    if failures:
        raise failures[0]


def _config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> GenerationConfig:
    """Return a configuration that ends at every end that the model or the tokenizer knows; greedy,
    unless told otherwise.
    """
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    fixed = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": sorted(ids),
        "do_sample": False,
    }
    return GenerationConfig(**fixed | options)
