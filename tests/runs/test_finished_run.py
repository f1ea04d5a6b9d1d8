"""What a run does that is started again: nothing, if it is finished; else what is left to do."""

import dataclasses
import json
import shutil

import pytest
import yaml

from peftkit.cli import main
from peftkit.config.reading import build
from peftkit.errors import ConfigError
from peftkit.files import read_json
from peftkit.runs.frozen_config import describe_finished
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import config_values, run, write_jsonl


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("peftkit.runs.report.draw_all", lambda directory: {})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, llama_dir):
    """The values of a config, and a finished run of it that no test may change."""
    directory = tmp_path_factory.mktemp("finished")
    values = config_values("text_classification", directory, llama_dir)
    values["adapter"] = {"method": "lora", "r": 4}
    run("text_classification", values)
    return values


@pytest.fixture
def copied(finished, tmp_path):
    """The same in a directory of its own, whose config says that it is there."""
    values = json.loads(json.dumps(finished)) | {"run_dir": str(tmp_path / "run")}
    shutil.copytree(finished["run_dir"], values["run_dir"])
    frozen = tmp_path / "run" / "config.yaml"
    frozen.write_text(frozen.read_text().replace(finished["run_dir"], values["run_dir"]))
    return values


def config_of(values):
    return build(load_recipe(recipe_named("text_classification")).Config, values, "a test")


def files_of(directory):
    found = {}
    for path in directory.rglob("*"):
        found[path] = path.stat().st_mtime_ns
    return found


def refuse_models(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("a finished run needs no model")

    monkeypatch.setattr("peftkit.load_backbone", load)


def test_a_finished_run_measures_and_saves_nothing(finished, monkeypatch, capsys, tmp_path):
    from pathlib import Path

    directory = Path(finished["run_dir"])
    before = files_of(directory)
    refuse_models(monkeypatch)
    run("text_classification", finished)
    assert files_of(directory) == before
    assert capsys.readouterr().err == (
        f"this run is finished: the report is {directory}/report.md, the adapter "
        f"{directory}/adapter; to train once more, set another run_dir\n"
    )


def test_peftkit_train_starts_nothing_for_a_finished_run(finished, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("subprocess.call", lambda *arguments, **options: 1)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(finished))
    words = ["train", "text_classification", "--config", str(config)]
    assert main(words) == 0
    assert "this run is finished: the report is" in capsys.readouterr().err
    assert main([*words, "--seed", "7"]) == 1  # another run, which is started


def test_a_run_that_was_killed_before_its_report_goes_on_where_it_stopped(copied, tmp_path):
    directory = tmp_path / "run"
    after = read_json(directory / "after.json")
    log = (directory / "metrics.jsonl").read_text()
    (directory / "report.md").unlink()
    (directory / "after.json").unlink()
    shutil.rmtree(directory / "adapter")
    run("text_classification", copied)
    assert (directory / "metrics.jsonl").read_text() == log  # not one more step
    assert read_json(directory / "after.json")["metrics"] == pytest.approx(after["metrics"])
    assert describe_finished(config_of(copied)) is not None


def test_a_run_without_its_adapter_is_not_finished(copied, tmp_path):
    assert describe_finished(config_of(copied)) is not None
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert describe_finished(config_of(copied)) is None


def test_a_run_that_goes_on_from_a_named_checkpoint_is_not_finished_meanwhile(
    copied, tmp_path, monkeypatch
):
    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    copied["train"]["resume"] = str(last)
    assert describe_finished(config_of(copied)) is None
    refuse_models(monkeypatch)  # as if the run were killed here
    with pytest.raises(AssertionError):
        run("text_classification", copied)
    copied["train"]["resume"] = "auto"
    assert describe_finished(config_of(copied)) is None


def test_a_finished_run_is_not_mistaken_for_one_of_another_config(copied):
    config = config_of(copied)
    assert describe_finished(dataclasses.replace(config, seed=1)) is None
    with pytest.raises(ConfigError, match="differs in seed; choose another run_dir"):
        run("text_classification", copied | {"seed": 1})


def test_other_trackers_leave_a_finished_run_finished(copied):
    copied["train"]["trackers"] = ["tensorboard"]
    assert describe_finished(config_of(copied)) is not None


def test_a_run_of_few_steps_ends_the_same_after_an_interruption(tmp_path, llama_dir):
    """The rows that its steps need are drawn again, and are the same."""
    found = []
    for name in ("whole", "stopped"):
        values = config_values("text_classification", tmp_path / name, llama_dir, count=60)
        values["adapter"] = {"method": "lora", "r": 4}
        values["train"] |= {"max_steps": 6, "evaluate_every": 3, "restore_best": False}
        directory = run("text_classification", values)
        if name == "stopped":
            (directory / "report.md").unlink()
            _, last = sorted((directory / "checkpoints").iterdir())  # the best and the last
            shutil.rmtree(last)
            run("text_classification", values)
        log = (directory / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in log])
    assert found[0] == found[1]
    assert len(found[0]) == 8  # six steps, two evaluations


def test_a_part_of_an_epoch_is_a_part_of_all_rows(tmp_path, llama_dir):
    """Of 400 rows in steps of 4, a tenth of an epoch is 10 steps, however few rows are drawn."""
    values = config_values("text_classification", tmp_path, llama_dir, count=400)
    values["adapter"] = {"method": "lora", "r": 4}
    values["train"] |= {"max_steps": 25, "evaluate_every": 0.1}
    log = (run("text_classification", values) / "metrics.jsonl").read_text().splitlines()
    evaluated = []
    for line in map(json.loads, log):
        if line["kind"] == "evaluation":
            evaluated.append(line["step"])
    assert evaluated == [10, 20, 25]


def test_warnings_of_the_lint_are_said_and_in_the_report(tmp_path, llama_dir, capsys):
    values = config_values("text_classification", tmp_path, llama_dir)
    rows = [{"text": "good film", "label": "up"}] * 3 + [{"text": "bad film", "label": "down"}] * 3
    write_jsonl(tmp_path / "train.jsonl", rows)
    report = (run("text_classification", values) / "report.md").read_text()
    assert "Lint: 4 rows are copies of earlier rows" in report
    assert "4 rows are copies of earlier rows" in capsys.readouterr().err
    values["data"]["lint"] = False
    values["run_dir"] = str(tmp_path / "without")
    assert "Lint:" not in (run("text_classification", values) / "report.md").read_text()
