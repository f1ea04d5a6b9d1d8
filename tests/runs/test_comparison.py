import json

import pytest
import yaml

from peftkit.cli import main
from peftkit.errors import ConfigError
from peftkit.metrics import lower_is_better
from peftkit.runs.comparison import compare, read_run


def make_run(path, *, finished=True, loss=1.0, accuracy=0.5, method="LORA", **changes):
    path.mkdir(parents=True)
    config = {
        "model": {"source": "m"},
        "adapter": {"method": method.lower(), "r": 8},
        "run_dir": str(path),
        **changes,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "model.json").write_text(
        json.dumps({"attach": {"method": method, "trained_parameters": 12345}})
    )
    (path / "before.json").write_text(
        json.dumps({"metrics": {"loss": 4.0, "accuracy": 0.1}, "predictions": []})
    )
    train = [
        {"step": n, "kind": "train", "loss": 2.0, "seconds": 30.0 * n, "memory_gib": 1.0 + n / 100}
        for n in range(1, 11)
    ]
    held_out = [
        {"step": n, "kind": "evaluation", "loss": 3.0 - n / 10, "accuracy": 0.3} for n in (5, 10)
    ]
    lines = sorted([*train, *held_out], key=lambda line: line["step"])
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        metrics = {"loss": loss, "accuracy": accuracy}
        (path / "after.json").write_text(
            json.dumps({"metrics": metrics, "predictions": [], "confusion": None})
        )
    return path


def cells(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    "name", ["loss", "perplexity", "word_error_rate", "mean_absolute_error", "retained loss", "wer"]
)
def test_a_lower_loss_or_error_is_better(name):
    assert lower_is_better(name)


@pytest.mark.parametrize(
    "name", ["accuracy", "exact-fact accuracy", "macro_f1", "rougeL", "ndcg@10", "bleu", "matthews"]
)
def test_a_higher_accuracy_or_score_is_better(name):
    assert not lower_is_better(name)


def test_a_comparison_marks_the_best_values_and_lists_the_settings_that_differ(tmp_path):
    one = make_run(tmp_path / "one", loss=1.0, accuracy=0.5)
    two = make_run(tmp_path / "two", loss=2.0, accuracy=0.75, method="BOTTLENECK", seed=1)
    text = compare([one, two])
    assert cells(text, "one") == ["one", "lora", "12,345", "**1**", "0.5", "10", "5.0", "1.10"]
    assert cells(text, "two") == [
        "two",
        "bottleneck",
        "12,345",
        "2",
        "**0.75**",
        "10",
        "5.0",
        "1.10",
    ]
    settings = text.split("## Settings that differ")[1]
    assert cells(settings, "adapter.method") == ["adapter.method", "lora", "bottleneck"]
    assert cells(settings, "seed") == ["seed", "", "1"]
    assert "run_dir" not in settings
    assert "adapter.r" not in settings


def test_a_comparison_shows_the_last_evaluation_of_an_unfinished_run_and_never_marks_it_best(
    tmp_path,
):
    one = make_run(tmp_path / "one", loss=2.5)
    two = make_run(tmp_path / "two", finished=False)
    three = make_run(tmp_path / "three", loss=3.0)
    text = compare([one, two, three])
    assert cells(text, "two")[:5] == ["two (unfinished)", "lora", "12,345", "2", "0.3"]
    assert cells(text, "one")[3] == "**2.5**"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text("run_dir: bare\n")
    assert cells(compare([one, bare]), "bare") == ["bare (unfinished)", "", "", "", "", "0", "", ""]


def test_a_comparison_has_a_line_for_each_run_even_of_one_name(tmp_path):
    one = make_run(tmp_path / "a" / "run")
    two = make_run(tmp_path / "b" / "run")
    (two / "after.json").write_text(json.dumps({"metrics": {"bleu": 30.0}}))
    text = compare([one, two])
    assert cells(text, str(one))[3:6] == ["1", "0.5", ""]
    assert cells(text, str(two))[3:6] == ["", "", "30"]


def test_a_comparison_in_a_file_has_a_picture_of_the_metric_beside_it(tmp_path):
    runs = [make_run(tmp_path / f"run{n}", finished=n > 0) for n in range(3)]
    compare(runs, tmp_path / "out.md", metric="accuracy")
    assert "![accuracy over steps](out.png)" in (tmp_path / "out.md").read_text()
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no run has 'bleu' to draw; there is loss, accuracy"):
        compare(runs, tmp_path / "out.md", metric="bleu")


def test_the_curve_of_a_run_starts_before_training(tmp_path):
    run = read_run(make_run(tmp_path / "one"))
    assert [point["step"] for point in run.curve] == [0, 5, 10]
    with pytest.raises(ConfigError, match="holds no run"):
        read_run(tmp_path)


def test_peftkit_compare_prints_a_table_or_json(tmp_path, capsys):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", finished=False)
    assert main(["compare", str(one), str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["finished"], run["metrics"]["loss"]) for run in found] == [
        ("one", True, 1.0),
        ("two", False, 2.0),
    ]
    assert main(["compare", str(one), str(two), "--output", str(tmp_path / "out.md")]) == 0
    assert capsys.readouterr().out.startswith("| run | method |")
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "holds no run" in capsys.readouterr().err
