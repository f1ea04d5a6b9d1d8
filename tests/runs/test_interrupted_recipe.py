"""A Ctrl-C outside of the training loop ends a recipe with a sentence."""

import sys

import pytest

from peftkit.cli import main
from peftkit.runs import finetune
from peftkit.runs.recipe import run_recipe
from peftkit.runs.recipes import load_recipe, recipes


def test_a_ctrl_c_before_the_training_ends_with_a_sentence(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    script = recipes()["chat"]
    settings = ["--model.source", "a", "--data.train", "b.jsonl", "--run_dir", "runs/c"]
    monkeypatch.setattr(sys, "argv", [str(script), *settings])
    monkeypatch.setattr(finetune, "finetune", interrupt)
    with pytest.raises(SystemExit) as ended:
        run_recipe(None, load_recipe(script).Config)
    assert ended.value.code == 130
    assert capsys.readouterr().err == (
        "interrupted; the same command goes on with what is saved in runs/c\n"
    )


def test_a_ctrl_c_during_another_command_ends_with_a_sentence(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("peftkit.runs.recipes.load_recipe", interrupt)
    assert main(["preview", "chat"]) == 130
    assert capsys.readouterr().err == "peftkit preview: interrupted\n"
