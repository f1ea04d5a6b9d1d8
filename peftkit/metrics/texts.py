"""Metrics of written texts against references."""

from collections.abc import Sequence


def translation_metrics(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return corpus BLEU and chrF (0 to 100, sacrebleu's defaults) and the share of exact matches."""
    from sacrebleu.metrics import BLEU, CHRF

    exact = sum(
        ours.strip() == right.strip() for ours, right in zip(texts, references, strict=True)
    ) / len(texts)
    bleu = BLEU(tokenize="zh" if _is_chinese(references) else "13a").corpus_score(
        list(texts), [list(references)]
    )
    chrf = CHRF().corpus_score(list(texts), [list(references)])
    return {"bleu": bleu.score, "chrf": chrf.score, "exact_match": exact}


def summary_metrics(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return the mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (0 to 1), without stemming."""
    from rouge_score import rouge_scorer, tokenizers

    class Words(tokenizers.Tokenizer):
        """Words of any script; rouge-score's own drops all that is not ASCII. Chinese characters
        are words.
        """

        def tokenize(self, text: str) -> list[str]:
            import re

            return re.findall(r"[一-鿿]|[^\W一-鿿]+", text.lower())

    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(list(names), tokenizer=Words())
    scored = [scorer.score(right, ours) for ours, right in zip(texts, references, strict=True)]
    return {name: sum(each[name].fmeasure for each in scored) / len(scored) for name in names}


def transcription_metrics(references: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return word and character error rate over all texts together (0 is perfect; may exceed 1).

    Case, punctuation and spacing are made alike first.
    """
    import jiwer

    plain = jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.RemovePunctuation(),
            jiwer.RemoveMultipleSpaces(),
            jiwer.Strip(),
        ]
    )
    right, ours = [plain(text) for text in references], [plain(text) for text in texts]
    spoken = [
        number for number, text in enumerate(right) if text
    ]  # an error rate over no word is not defined
    right, ours = [right[i] for i in spoken], [ours[i] for i in spoken]
    return {
        "word_error_rate": float(jiwer.wer(right, ours)),
        "character_error_rate": float(jiwer.cer(right, ours)),
    }


def _is_chinese(texts: Sequence[str]) -> bool:
    characters = "".join(texts)
    return sum("一" <= c <= "鿿" for c in characters) > len(characters) / 4
