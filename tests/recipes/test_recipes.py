"""Every recipe trains, saves, reports, and predicts the same in a fresh process."""

import json
import subprocess
import sys

import pytest

from peftkit.cli import main
from peftkit.files import read_json
from peftkit.training.metrics import read_metrics
from tests.recipes.jobs import METHODS, NAMES, ROOT, config_values, run, write_jsonl

METRICS = {
    "text_classification": {"loss", "accuracy", "macro_f1", "f1", "auc"},
    "text_pair": {"loss", "accuracy", "auc", "ndcg@10", "mrr", "hit_rate@1"},
    "token_classification": {"loss", "entity_f1", "tag_accuracy"},
    "causal_lm": {"loss", "perplexity"},
    "chat": {"loss", "perplexity", "exact-fact accuracy"},
    "seq2seq": {"loss", "perplexity", "bleu", "chrf", "exact_match"},
    "image_classification": {"loss", "accuracy", "macro_f1"},
    "speech_recognition": {"loss", "perplexity", "word_error_rate", "character_error_rate"},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_learns_with_every_method(name, method, tmp_path, llama_dir):
    directory = run(name, config_values(name, tmp_path, llama_dir, method=method))
    after = read_json(directory / "after.json")["metrics"]
    assert METRICS[name] <= after.keys()
    losses = [line["loss"] for line in read_metrics(directory / "metrics.jsonl") if line["kind"] == "evaluation"]
    assert losses[-1] < losses[0]
    assert after["loss"] == pytest.approx(min(losses), rel=1e-4)  # what was saved is the best of what was measured
    report = (directory / "report.md").read_text()
    assert "| after |" in report.replace("before | after", "| after")
    assert (directory / "loss.png").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_process_predicts_the_same(name, tmp_path, llama_dir):
    directory = run(name, config_values(name, tmp_path, llama_dir, quantization="nf4"))
    words = ["predict", str(directory), "--data", str(tmp_path / "held_out.jsonl"), "--output"]
    assert main([*words, str(tmp_path / "here.jsonl")]) == 0
    code = "import sys; from peftkit.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *words, str(tmp_path / "there.jsonl")], check=True, cwd=ROOT)
    here, there = ((tmp_path / f"{each}.jsonl").read_text() for each in ("here", "there"))
    assert here == there
    assert len(here.splitlines()) == 6


def test_predictions_need_no_labels_and_evaluation_needs_them(tmp_path, llama_dir, capsys):
    directory = run("text_classification", config_values("text_classification", tmp_path, llama_dir))
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "good film 3"}, {"text": "bad film 4"}])
    assert main(["predict", str(directory), "--data", texts, "--output", str(tmp_path / "out.jsonl")]) == 0
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
