"""Let a language model write: many prompts in batches, or one as a stream."""

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

from peftkit.modes import evaluation_mode


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    **options: Any,
) -> list[str]:
    """Return the model's continuation of each rendered prompt, without special tokens.

    Decoding is greedy unless `options` say otherwise. The model is left in the mode it was in.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer; prompts are taken as rendered, no token is added.
        prompts: Rendered prompts, e.g. from `peftkit.data.supervised_tokens.render_prompt`.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts answered at a time.
        options: Fields of transformers' GenerationConfig, e.g. ``num_beams=4``.
    """
    answers = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    config = _generation_config(model, tokenizer, max_new_tokens=max_new_tokens, **options)
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"  # so the answers begin at the same place
    try:
        for start in range(0, len(prompts), batch_size):
            numbers = by_length[start : start + batch_size]
            texts = [prompts[number] for number in numbers]
            batch = _tokenize(tokenizer, texts, model)
            with torch.inference_mode(), evaluation_mode(model):
                ids = model.generate(**batch, generation_config=config)  # type: ignore[operator]
            new = ids[:, batch["input_ids"].shape[1] :]  # [prompts, new tokens]
            written = tokenizer.batch_decode(new, skip_special_tokens=True)
            for number, text in zip(numbers, written, strict=True):
                answers[number] = text.strip()
    finally:
        tokenizer.padding_side = side
    return answers


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], model: nn.Module) -> Any:
    """Return rendered prompts as a padded batch on the model's device."""
    batch = tokenizer(
        texts,
        return_tensors="pt",
        padding=len(texts) > 1,  # a tokenizer without a padding token can still answer one
        add_special_tokens=False,
        return_token_type_ids=False,
    )
    return batch.to(next(model.parameters()).device)


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    **options: Any,
) -> Iterator[str]:
    """Yield the model's continuation of a rendered prompt in pieces, as they are written.

    Closing the iterator stops the model.

    Args:
        model: A causal language model, with or without an adapter; it is left in evaluation mode.
        tokenizer: Its tokenizer; the prompt is taken as rendered.
        prompt: A rendered prompt.
        max_new_tokens: Longest answer, in tokens.
        options: Fields of transformers' GenerationConfig.
    """
    batch = _tokenize(tokenizer, [prompt], model)
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    config = _generation_config(model, tokenizer, max_new_tokens=max_new_tokens, **options)
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


def _generation_config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> GenerationConfig:
    """Return greedy decoding, with `options` on top.

    It ends at every end token that the model or the tokenizer knows.
    """
    ends = {tokenizer.eos_token_id}
    model_ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends |= set(model_ends) if isinstance(model_ends, list) else {model_ends}
    fixed = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": sorted(ends - {None}),
        "do_sample": False,
    }
    return GenerationConfig(**fixed | options)
