"""Metrics of generated texts against references."""

import re
from collections.abc import Sequence
from typing import Any


def translation_metrics(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return corpus BLEU and chrF (0 to 100, sacrebleu's defaults), and the share of exact matches.

    Chinese texts are tokenised as Chinese for BLEU.
    """
    from sacrebleu.metrics import BLEU, CHRF

    tokenizer = "zh" if _is_chinese(references) else "13a"
    bleu = BLEU(tokenize=tokenizer).corpus_score(list(texts), [list(references)])
    chrf = CHRF().corpus_score(list(texts), [list(references)])
    exact = 0
    for text, reference in zip(texts, references, strict=True):
        exact += text.strip() == reference.strip()
    return {"bleu": bleu.score, "chrf": chrf.score, "exact_match": exact / len(texts)}


def _is_chinese(texts: Sequence[str]) -> bool:
    """Return whether more than a quarter of all characters are Chinese."""
    characters = "".join(texts)
    chinese = sum("一" <= character <= "鿿" for character in characters)
    return chinese > len(characters) / 4


def summary_metrics(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return the mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (0 to 1), without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), tokenizer=_Words())
    measures: dict[str, list[float]] = {name: [] for name in names}
    for text, reference in zip(texts, references, strict=True):
        scores = scorer.score(reference, text)
        for name in names:
            measures[name].append(scores[name].fmeasure)
    return {name: sum(measures[name]) / len(texts) for name in names}


class _Words:
    """The words of any script, for rouge-score, whose own tokenizer keeps nothing but ASCII.

    Each Chinese character is a word.
    """

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[一-鿿]|[^\W一-鿿]+", text.lower())


def transcription_metrics(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return word and character error rate over all texts together.

    0 is perfect, and a rate may exceed 1. Case, punctuation and spacing do not count. Silent
    references are left out: an error rate over no word is not defined.
    """
    import jiwer

    normalize: Any = jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.RemovePunctuation(),
            jiwer.RemoveMultipleSpaces(),
            jiwer.Strip(),
        ]
    )
    right, ours = [], []
    for reference, text in zip(references, texts, strict=True):
        spoken = normalize(reference)
        if spoken:
            right.append(spoken)
            ours.append(normalize(text))
    return {
        "word_error_rate": float(jiwer.wer(right, ours)),
        "character_error_rate": float(jiwer.cer(right, ours)),
    }
