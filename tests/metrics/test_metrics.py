"""Metrics against sums that can be done by hand."""

import math

import pytest

from peftkit.metrics.classes import best_threshold, class_metrics, class_report, confusion
from peftkit.metrics.entities import are_entities, entity_metrics, entity_report, tag_metrics
from peftkit.metrics.ranking import ranking_metrics, score_metrics
from peftkit.metrics.tables import markdown
from peftkit.metrics.texts import summary_metrics, transcription_metrics, translation_metrics


def test_class_metrics_agree_with_sums_done_by_hand():
    true, predicted = [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]
    chances = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.55, 0.45]]
    found = class_metrics(["no", "yes"], true, predicted, chances)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(
        2 * 2 / (2 * 2 + 1 + 1)
    )  # 2 true positives, 1 false positive, 1 false negative
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["auc"] == pytest.approx(5 / 6)  # of six pairs, one is the wrong way round
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.9, 0.4, 0.7, 0.8, 0.45))) / 5)
    assert confusion(["no", "yes"], true, predicted) == {
        "labels": ["no", "yes"],
        "counts": [[1, 1], [1, 2]],
    }
    assert "| yes | 0.667 | 0.667 | 0.667 | 3 |" in class_report(["no", "yes"], true, predicted)


def test_a_class_that_never_occurs_counts_as_missed_and_one_class_has_no_auc():
    found = class_metrics(
        ["a", "b", "c"], [0, 0, 1], [0, 0, 1], [[0.8, 0.1, 0.1]] * 2 + [[0.1, 0.8, 0.1]]
    )
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert "auc" not in class_metrics(["a", "b"], [0, 0], [0, 0], [[0.8, 0.2]] * 2)


def test_the_threshold_gives_the_highest_f1():
    true, chances = [0, 0, 1, 0, 1, 1], [0.1, 0.3, 0.35, 0.4, 0.6, 0.9]
    threshold = best_threshold(true, chances)

    def f1(limit):
        hits = [t for t, c in zip(true, chances, strict=True) if c >= limit]
        return 2 * sum(hits) / (len(hits) + sum(true))

    assert f1(threshold) == max(map(f1, chances))


def test_ranking_metrics_agree_with_sums_done_by_hand():
    groups = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    relevance = [0, 1, 0, 1, 0, 0, 1, 0, 0]
    scores = [0.9, 0.8, 0.1, 0.7, 0.3, 0.2, 0.5, 1.0, 2.0]
    found = ranking_metrics(groups, relevance, scores)
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg@10"] == pytest.approx(((1 / math.log2(3) + 1 / 2) / ideal + 1) / 2)
    assert found["mrr@10"] == pytest.approx(
        (1 / 2 + 1) / 2
    )  # nothing is right for c, which is left out
    assert found["hit_rate@1"] == pytest.approx(1 / 2)
    assert found["hit_rate@3"] == 1


def test_a_model_that_scores_all_alike_hits_nothing():
    found = ranking_metrics([0] * 4, [0, 0, 0, 1], [0.5] * 4)
    assert (found["hit_rate@1"], found["mrr@10"]) == (0, 1 / 4)
    assert ranking_metrics([0, 1], [1, 1], [0.1, 0.2]) == {}  # lists of one have no order


def test_scores_have_correlations_and_an_error_and_a_constant_has_no_correlation():
    found = score_metrics([1.0, 2.0, 3.0], [10.0, 20.0, 90.0])
    assert found["spearman"] == pytest.approx(1)
    assert found["mean_absolute_error"] == pytest.approx((9 + 18 + 87) / 3)
    assert set(score_metrics([1.0, 1.0], [1.0, 2.0])) == {"mean_absolute_error"}


def test_entities_count_as_wholes():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC"]]
    found = entity_metrics(true, predicted)
    assert found["entity_precision"] == pytest.approx(1 / 3)
    assert found["entity_recall"] == pytest.approx(1 / 3)
    assert found["tag_accuracy"] == pytest.approx(4 / 6)
    assert "| LOC | 0.500 | 1.000 | 0.667 | 1 |" in entity_report(true, predicted)
    assert entity_metrics(true, true)["entity_f1"] == 1
    assert are_entities(["O", "B-PER"])
    assert not are_entities(["NOUN", "O"])
    bioes = ["B-PER", "E-PER", "S-LOC", "S-LOC", "O"]
    assert are_entities(bioes)
    assert entity_metrics([bioes], [["B-PER", "I-PER", "B-LOC", "B-LOC", "O"]])["entity_f1"] == 1
    assert (
        entity_metrics([bioes], [["B-PER", "E-PER", "S-LOC", "I-LOC", "O"]])["entity_recall"] == 1
    )
    assert entity_metrics([bioes], [["B-PER", "O", "S-LOC", "O", "O"]])[
        "entity_recall"
    ] == pytest.approx(1 / 3)
    assert tag_metrics([["A", "B"]], [["A", "A"]]) == {"tag_accuracy": 0.5}


def test_bleu_chrf_and_rouge_count_western_and_chinese_words():
    assert translation_metrics(["das ist gut so"], ["das ist gut so"]) == pytest.approx(
        {"bleu": 100.0, "chrf": 100.0, "exact_match": 1.0}
    )
    assert translation_metrics(["今天天气很好"], ["今天天气很好"])["bleu"] == pytest.approx(100)
    assert 0 < translation_metrics(["今天天气很好啊"], ["今天天气很好"])["bleu"] < 100
    found = summary_metrics(["the cat sat"], ["the cat ran"])
    assert found["rouge1"] == pytest.approx(2 / 3)
    assert found["rouge2"] == pytest.approx(1 / 2)
    assert summary_metrics(["天气好"], ["天气坏"])["rouge1"] == pytest.approx(2 / 3)


def test_word_errors_are_counted_over_all_words():
    found = transcription_metrics(["one two three", "Four."], ["one too three", "four"])
    assert found["word_error_rate"] == pytest.approx(1 / 4)
    assert transcription_metrics(["one", ""], ["one", "noise"])["word_error_rate"] == 0
    assert transcription_metrics(["one two"], [""])["word_error_rate"] == 1


def test_tables_survive_bars_and_line_breaks():
    assert markdown(["a"], [["x | y\nz <b>"]]).splitlines()[-1] == "| x \\| y z &lt;b> |"
