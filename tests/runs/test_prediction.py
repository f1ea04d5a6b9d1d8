"""What finished runs predict and how they are measured; errors come before a model is loaded."""

import pytest

from peftkit.cli import main
from peftkit.runs import prediction
from peftkit.runs.opening import open_run
from tests.recipes.jobs import config_values, run, write_jsonl


@pytest.fixture(scope="module")
def finished(tmp_path_factory, llama_dir):
    """A finished run that no test changes."""
    directory = tmp_path_factory.mktemp("finished")
    values = config_values("text_classification", directory, llama_dir, steps=1)
    return run("text_classification", values | {"adapter": {"method": "lora", "r": 4}})


def refuse_models(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("the rows come first")

    monkeypatch.setattr("peftkit.load_backbone", load)


def test_predictions_do_not_depend_on_how_many_rows_are_in_memory(finished, monkeypatch):
    runs = [open_run(finished)]
    rows = runs[0].held_out_rows()
    whole = prediction.predict(runs, rows, batch_size=4)
    monkeypatch.setattr(prediction, "_ROWS_AT_A_TIME", 2)
    parts = prediction.predict(runs, rows, batch_size=4)
    assert len(parts) == len(rows) == 6
    for whole_row, row in zip(whole, parts, strict=True):
        assert row == pytest.approx(whole_row, abs=1e-5)


def test_a_label_that_the_run_does_not_know_is_named_with_its_file_and_row(
    finished, tmp_path, capsys, monkeypatch
):
    refuse_models(monkeypatch)
    rows = [{"text": "good film", "label": "up"}, {"text": "odd film", "label": "sideways"}]
    data = write_jsonl(tmp_path / "other.jsonl", rows)
    assert main(["evaluate", str(finished), "--data", data]) == 2
    assert "other.jsonl, row 2: the label 'sideways'" in capsys.readouterr().err


def test_rows_without_anything_to_measure_are_refused(llama_dir, tmp_path, capsys, monkeypatch):
    directory = run("chat", config_values("chat", tmp_path, llama_dir, steps=1))
    refuse_models(monkeypatch)
    rows = [{"prompt": "x" * 200, "completion": "y"}]  # of which 64 tokens are read
    data = write_jsonl(tmp_path / "short.jsonl", rows)
    assert main(["evaluate", str(directory), "--data", data]) == 2
    assert "1 of 1 rows have no supervised token within 64 tokens" in capsys.readouterr().err
