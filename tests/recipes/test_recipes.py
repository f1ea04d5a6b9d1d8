"""Every recipe trains, saves, reports, and predicts the same in a fresh process."""

import json
import subprocess
import sys

import pytest

from peftkit.cli import main
from peftkit.files import read_json
from peftkit.training.metrics_log import read_metrics
from tests.recipes.jobs import METHODS, NAMES, ROOT, config_values, run, write_jsonl

METRICS = {
    "text_classification": {"loss", "accuracy", "macro_f1", "f1", "auc"},
    "text_pair": {"loss", "accuracy", "auc", "ndcg@10", "mrr@10", "hit_rate@1"},
    "token_classification": {"loss", "entity_f1", "tag_accuracy"},
    "causal_lm": {"loss", "perplexity"},
    "chat": {"loss", "perplexity", "exact-fact accuracy"},
    "seq2seq": {"loss", "perplexity", "bleu", "chrf", "exact_match"},
    "image_classification": {"loss", "accuracy", "macro_f1"},
    "speech_recognition": {"loss", "perplexity", "word_error_rate", "character_error_rate"},
}


def halves():
    """Return (recipe, methods) twice for each recipe: two methods at once, two with the slow tests.

    Between them, the first halves hold every recipe and every method.
    """
    found = []
    for number, name in enumerate(NAMES):
        for start in (0, 1):
            methods = list(METHODS)[start::2]
            marks = [] if start == number % 2 else [pytest.mark.slow]
            label = f"{name}-{'-'.join(methods)}"
            found.append(pytest.param(name, methods, marks=marks, id=label))
    return found


def pairs():
    """Return (recipe, method) for every pair; half of them are slow."""
    found = []
    for half in halves():
        name, methods = half.values
        for method in methods:
            found.append(pytest.param(name, method, marks=half.marks, id=f"{name}-{method}"))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, llama_dir):
    """The directory of a finished run of a recipe with a method; each is made once."""
    made = {}

    def directory(name, method):
        if (name, method) not in made:
            place = tmp_path_factory.mktemp(f"{name}-{method}")
            quantization = "nf4" if method in ("adalora", "prefix") else None
            made[name, method] = run(
                name,
                config_values(name, place, llama_dir, method=method, quantization=quantization),
            )
        return made[name, method]

    return directory


@pytest.mark.parametrize(("name", "method"), pairs())
def test_a_recipe_learns_with_every_method(name, method, finished):
    directory = finished(name, method)
    after = read_json(directory / "after.json")["metrics"]
    assert METRICS[name] <= after.keys()
    losses = [
        line["loss"]
        for line in read_metrics(directory / "metrics.jsonl")
        if line["kind"] == "evaluation"
    ]
    assert losses[-1] < losses[0]
    best = (
        losses[-1] if method == "adalora" else min(losses)
    )  # no model is the best before the budget has fallen
    assert after["loss"] == pytest.approx(best, rel=1e-3)  # what was saved is what was measured
    report = (directory / "report.md").read_text()
    assert "|  | before | after |" in report
    assert "| loss |" in report
    for picture in ("loss", "schedule", "memory"):
        assert f"({picture}.png)" in report
        assert (directory / f"{picture}.png").exists()
    assert (directory / "ranks.png").exists() == (method == "adalora")
    assert (directory / "confusion.png").exists() == ("accuracy" in METRICS[name])


@pytest.mark.parametrize(("name", "methods"), halves())
def test_a_fresh_process_predicts_the_same_with_every_method(name, methods, finished, tmp_path):
    runs = [finished(name, method) for method in methods]
    jobs = [
        ["predict", str(each), "--data", str(each.parent / "held_out.jsonl"), "--output"]
        for each in runs
    ]
    for number, words in enumerate(jobs):
        assert main([*words, str(tmp_path / f"here-{number}.jsonl")]) == 0
    there = [[*words, str(tmp_path / f"there-{number}.jsonl")] for number, words in enumerate(jobs)]
    code = f"from peftkit.cli import main\nfor words in {there!r}: assert main(words) == 0"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for number in range(len(jobs)):
        here, there = (
            (tmp_path / f"{each}-{number}.jsonl").read_text() for each in ("here", "there")
        )
        assert here == there
        assert len(here.splitlines()) == 6


def test_predictions_need_no_labels_and_evaluation_needs_them(tmp_path, llama_dir, capsys):
    directory = run(
        "text_classification", config_values("text_classification", tmp_path, llama_dir)
    )
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "good film 3"}, {"text": "bad film 4"}])
    assert (
        main(["predict", str(directory), "--data", texts, "--output", str(tmp_path / "out.jsonl")])
        == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["text"] == "good film 3"
    assert set(rows[0]["probabilities"]) == {"up", "down"}
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)
    capsys.readouterr()
    assert main(["evaluate", str(directory), "--data", texts]) == 2
    assert "no 'label'" in capsys.readouterr().err
    assert main(["evaluate", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "| up |" in shown
