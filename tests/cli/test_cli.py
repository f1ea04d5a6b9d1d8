import json
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

import peftkit
from peftkit.cli import main
from tests.conftest import randomize


def run(*words):
    command = [
        sys.executable,
        "-c",
        "import sys; from peftkit.cli import main; sys.exit(main())",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_help_answers_at_once_and_imports_nothing_heavy():
    started = time.monotonic()
    assert "preview" in run("--help").stdout
    assert time.monotonic() - started < 2  # 0.05 s on an idle machine
    code = (
        "import sys; from peftkit.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "chta", "--config", "x"], "no recipe is named; recipes are causal_lm, chat, "),
        (["preview", "--config", "/nowhere.yaml"], "cannot read the config /nowhere.yaml"),
        (["merge", "/nowhere", "/nowhere", "out"], "there is no directory /nowhere"),
    ],
)
def test_a_mistake_gets_one_clear_sentence_and_exit_code_2(capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def dialogues(path, count):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {i}?"},
                {"role": "assistant", "content": f"answer {i}."},
            ],
            "expect": [f"answer {i}."],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(llama_dir, tmp_path):
    path = tmp_path / "config.yaml"
    train, held_out = dialogues(tmp_path / "train.jsonl", 12), dialogues(tmp_path / "held.jsonl", 4)
    path.write_text(
        f"model: {{source: {llama_dir}, quantization: nf4}}\n"
        f"data: {{train: {train}, evaluation: {held_out}, max_length: 128}}\n"
        f"train: {{epochs: 2, batch_size: 4, evaluate_every: 1.0, trackers: [tensorboard]}}\n"
        f"run_dir: {tmp_path / 'run'}\ngeneration: {{max_new_tokens: 4}}\nmerge: true\n"
    )
    return path


def test_the_preview_shows_examples_and_lengths(config, capsys):
    assert main(["preview", "--config", str(config), "--count", "2"]) == 0
    text = capsys.readouterr().out
    assert "chat" in text
    assert text.count("--- example") == 2
    assert "⟦answer 0.<|im_end|>⟧" in text
    assert "length in tokens" in text


def test_merging_from_the_command_line(llama_dir, tmp_path, ids):
    model = randomize(peftkit.attach(peftkit.load_backbone(llama_dir), peftkit.LoraConfig(r=4)))
    peftkit.save(model, tmp_path / "adapter")
    assert (
        main(
            [
                "merge",
                str(llama_dir),
                str(tmp_path / "adapter"),
                str(tmp_path / "out"),
                "--dtype",
                "float32",
            ]
        )
        == 0
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = peftkit.merge(
        peftkit.load(peftkit.load_backbone(llama_dir, dtype=torch.float32), tmp_path / "adapter"),
        torch.float32,
    )
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, expected(ids).logits)


@pytest.mark.slow
def test_the_chat_recipe_trains_reports_saves_merges_and_goes_on(config, tmp_path):
    """Through `peftkit train`, which runs `accelerate launch`; a second time, there is nothing left
    to do.
    """
    first = run("train", "--cpu", "chat", "--config", str(config))
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith("accelerate launch --quiet --cpu ")
    directory = tmp_path / "run"
    report = (directory / "report.md").read_text()
    for part in (
        "| perplexity |",
        "| exact-fact accuracy |",
        "| before | after | merged |",
        "merged into torch.bfloat16: logits differ",
        "loss.png",
        "quantization: nf4",
    ):
        assert part in report
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 8
    assert list(directory.rglob("events.out.tfevents.*"))
    settings = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    backbone = peftkit.load_backbone(settings["base_model_name_or_path"])
    peftkit.load(backbone, directory / "adapter")
    assert {
        p.dtype for p in AutoModelForCausalLM.from_pretrained(directory / "merged").parameters()
    } == {torch.bfloat16}

    again = run("train", "--cpu", "chat", "--config", str(directory / "config.yaml"))
    assert again.returncode == 0, again.stderr
    assert "resumed at step 6" in again.stderr
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_a_recipe_ends_with_2_and_all_errors(config):
    failed = run(
        "train",
        "--cpu",
        "chat",
        "--config",
        str(config),
        "--train.epoch",
        "3",
        "--model.quantization",
        "nf3",
    )
    assert failed.returncode != 0
    assert "train.epoch: unknown key; did you mean 'epochs'?" in failed.stderr
    assert "model.quantization: input should be 'int8', 'nf4' or 'fp4'" in failed.stderr
