import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import peftkit
from peftkit.cli import command_parser, main
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


def test_every_option_of_a_verb_is_in_its_help_and_every_word_of_the_help_is_accepted():
    parser = command_parser()
    verbs = parser._subparsers._group_actions[0].choices
    assert set(verbs) >= {"train", "evaluate", "merge", "combine"}
    for name, verb in verbs.items():
        shown = set(re.findall(r"(?<![\w-])--[a-z_-]+", verb.format_help()))
        accepted = {option for option in verb._option_string_actions if option.startswith("--")}
        of_the_recipe = {"--config", "--config_file", "--model", "--data"}
        if name in ("train", "preview"):
            shown -= of_the_recipe
        if name == "preview":
            shown -= {"--help"}
        assert shown | {"--help"} == accepted, name
        assert not verb.allow_abbrev


def test_inputs_come_first_and_what_is_written_is_named_by_output():
    verbs = command_parser()._subparsers._group_actions[0].choices
    for name in ("merge", "combine", "predict", "sweep", "compare", "evaluate"):
        assert "--output" in verbs[name]._option_string_actions
        for action in verbs[name]._actions:
            assert action.option_strings or action.dest != "output"


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"peftkit {peftkit.__version__}\n"


def test_the_help_of_a_recipe_through_train(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "text_pair", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: peftkit train text_pair [--config FILE]")
    assert "--data.target label|score" in text


def test_preview_asks_for_a_recipe(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["preview"])
    assert ended.value.code == 2
    assert "RECIPE" in capsys.readouterr().err


def test_train_finds_configs_and_presets_by_name_and_hands_the_rest_on(monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(
        "peftkit.cli.train.subprocess.call", lambda command, env: commands.append(command) or 0
    )
    monkeypatch.setattr("peftkit.cli.train.signal.signal", lambda *_: None)
    words = ["chat", "--config", "chat/quickstart", "--train.max_steps", "1"]
    assert main(["train", "--config_file", "ddp", *words]) == 0
    place = commands[0].index("--config_file")
    assert Path(commands[0][place + 1]).is_file()
    assert commands[0][-4:] == words[1:]
    with pytest.raises(SystemExit) as ended:
        main(["train", *words, "--train.epoch", "3"])
    assert ended.value.code == 2
    assert "train.epoch: unknown key; did you mean 'epochs'?" in capsys.readouterr().err
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "chta", "--config", "x"], "no recipe is named; recipes are causal_lm, chat, "),
        (["preview", "chat", "--config", "/nowhere.yaml"], "cannot read the config /nowhere.yaml"),
        (["preview", "chta", "--config", "x"], "there is no recipe 'chta'"),
        (["preview", "chat", "--config", "chat/quickstrat"], "did you mean 'chat/quickstart'"),
        (
            ["merge", "/nowhere", "/nowhere", "--output", "out"],
            "there is no directory /nowhere",
        ),
        (["trian", "chat"], "there is no command 'trian'; did you mean 'train'?"),
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
    assert main(["preview", "chat", "--config", str(config), "--count", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("train.jsonl, row") == 2
    assert "⟦answer 0.<|im_end|>⟧" in text
    assert "length in tokens" in text
    assert re.search(r"steps in an epoch +3 \(of 4 examples each\)", text)
    assert "1,000" not in text  # all 12 rows were taken


def test_the_preview_looks_for_copies_and_overlap_if_the_lint_is_asked_for(config, capsys):
    train = config.parent / "train.jsonl"  # its first 4 rows are those of held.jsonl
    text = train.read_text()
    train.write_text(text + text.splitlines()[4] + "\n")
    words = ["preview", "chat", "--config", str(config), "--count", "1"]
    assert main(words) == 0
    assert "lint of" not in capsys.readouterr().out
    assert main([*words, "--lint"]) == 0
    text = capsys.readouterr().out
    assert "lint of 13 training rows and 4 held-out rows" in text
    assert "4 held-out rows are among the training rows" in text
    assert re.search(
        r"1 row is a copy of an earlier row.*\n +\S+train.jsonl, row 13 = row 5\n", text
    )


def test_the_preview_as_a_page_has_what_the_lint_finds(config, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = [
        "preview",
        "chat",
        "--config",
        str(config),
        "--data.train",
        str(tmp_path / "same.jsonl"),
    ]
    (tmp_path / "same.jsonl").write_text((tmp_path / "train.jsonl").read_text() * 2)
    assert main([*words, "--html", str(page), "--lint"]) == 0
    text = capsys.readouterr().out
    assert "lint of" in text
    assert f"the page is in {page}" in text
    assert "Lint: " in page.read_text("utf-8")
    assert main([*words, "--html", "/nowhere/page.html"]) == 2


def test_the_preview_of_many_rows_takes_a_thousand_unless_all_are_asked_for(
    config, tmp_path, capsys
):
    train = dialogues(tmp_path / "many.jsonl", 2500)
    words = ["preview", "chat", "--config", str(config), "--data.train", str(train)]
    assert main([*words, "--count", "1"]) == 0
    assert re.search(r"rows +1,000 \(a sample of 2,500", capsys.readouterr().out)
    assert main([*words, "--count", "1", "--all"]) == 0
    assert re.search(r"\nrows +2,500\n", capsys.readouterr().out)


def test_merging_keeps_the_dtype_of_the_backbone_unless_another_is_asked_for(
    llama_dir, tmp_path, ids
):
    source = tmp_path / "float32"
    AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32).save_pretrained(source)
    peftkit.load_tokenizer(llama_dir).save_pretrained(source)
    model = randomize(peftkit.attach(peftkit.load_backbone(source), peftkit.LoraConfig(r=4)))
    peftkit.save(model, tmp_path / "adapter")
    words = ["merge", str(source), str(tmp_path / "adapter")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    backbone = peftkit.load_backbone(source, dtype=torch.float32)
    expected = peftkit.merge(peftkit.load(backbone, tmp_path / "adapter"), torch.float32)
    assert merged.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, expected(ids).logits)

    half = ["--output", str(tmp_path / "half"), "--dtype", "float16"]
    assert main([*words, *half]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16


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
    assert "this run is finished" in again.stderr
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_a_model_and_a_file_of_rows_are_enough_to_train(llama_dir, tmp_path):
    rows = dialogues(tmp_path / "questions.jsonl", 12)
    command = [sys.executable, "-c", "import sys; from peftkit.cli import main; sys.exit(main())"]
    words = ["--model", str(llama_dir), "--data", str(rows), "--train.max_steps", "2"]
    words += ["--train.batch_size", "2", "--data.max_length", "64"]
    done = subprocess.run(
        [*command, "train", "--cpu", "chat", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "values were not passed" not in done.stderr
    directory = tmp_path / "runs" / "chat-questions"
    written = yaml.safe_load((directory / "config.yaml").read_text())
    assert written["run_dir"] == "runs/chat-questions"
    assert written["data"]["evaluation"] == 0.1
    assert (written["train"]["epochs"], written["train"]["evaluate_every"]) == (3, 0.5)
    assert (directory / "adapter" / "adapter_config.json").is_file()

    other = [*words, "--adapter.r", "4"]
    refused = subprocess.run(
        [*command, "train", "--cpu", "chat", *other], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "differs in adapter.r" in refused.stderr
