"""Tasks that write texts, and the commands that use their runs."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import peftkit
from peftkit.backbones.processors import SpeechProcessor, set_languages
from peftkit.cli import main
from peftkit.config.reading import build
from peftkit.config.sections import GenerationSettings
from peftkit.errors import BackboneError, ConfigError
from peftkit.runs import prediction
from peftkit.runs.opening import open_run
from peftkit.runs.recipes import load_recipe, recipe_named
from tests.recipes.jobs import MODELS, config_values, run


@pytest.fixture(scope="module")
def texts(tmp_path_factory, llama_dir):
    return run("causal_lm", config_values("causal_lm", tmp_path_factory.mktemp("texts"), llama_dir))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, llama_dir):
    return run("text_pair", config_values("text_pair", tmp_path_factory.mktemp("pairs"), llama_dir))


def test_a_run_trained_on_texts_is_prompted_with_texts_even_if_its_tokenizer_has_a_chat_template(
    texts,
):
    task = open_run(texts).task
    assert task.processor.chat_template
    assert task.learned["formats"] == ["text"]
    assert task.prompt([], "the price") == "the price"
    task.learned["formats"] = ["chat"]
    assert task.prompt([], "hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_generation_settings_of_a_checkpoint_are_replaced_by_the_configs(
    tmp_path, llama_dir, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, "transformers")
    settings = build(
        load_recipe(recipe_named("seq2seq")).Config,
        config_values("seq2seq", tmp_path, llama_dir),
        "a test",
    )
    task = load_recipe(recipe_named("seq2seq")).make_task(settings)
    model = peftkit.load_backbone(
        MODELS / "bart-bytes" / "config.json", task="seq2seq-lm", dtype=torch.float32
    )
    rows = [{"source": "say 1"}, {"source": "say 22"}]
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), autocast=torch.no_grad, num_processes=1, process_index=0
    )
    expected = task.outputs(model, rows, accelerator, batch_size=2)
    for name, value in (
        ("num_beams", 4),
        ("min_length", 5),
        ("length_penalty", 2.0),
        ("no_repeat_ngram_size", 3),
    ):
        setattr(model.generation_config, name, value)
    model.generation_config.early_stopping, model.generation_config.top_p = True, 0.8
    assert task.outputs(model, rows, accelerator, batch_size=2) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.9}, "top_p does nothing without a temperature"),
        ({"length_penalty": 2.0}, "length_penalty does nothing without beams"),
    ],
)
def test_generation_settings_without_effect_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(GenerationSettings, values, "a test")


@pytest.mark.parametrize(
    "loss", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}, {"r_drop": 1.0}]
)
def test_losses_for_labels_are_refused_for_scores(tmp_path, llama_dir, loss):
    values = config_values("text_pair", tmp_path, llama_dir) | {"loss": loss}
    values["data"]["target"] = "score"
    with pytest.raises(ConfigError, match=f"loss.{next(iter(loss))} is for labels"):
        build(load_recipe(recipe_named("text_pair")).Config, values, "a test")


class Whisper:
    """What a multilingual Whisper's tokenizer does with languages."""

    eos_token_id = 1

    def set_prefix_tokens(self, language, task):
        if language != "german":
            raise ValueError(f"Unsupported language: {language}.")


@pytest.mark.parametrize(
    ("languages", "language", "message"),
    [
        ({"<|de|>": 1}, None, "is multilingual: name the language"),
        ({"<|de|>": 1}, "klingon", "data.language: Unsupported language: klingon"),
        (None, "german", "takes no language"),
        ({"<|de|>": 1}, "german", None),
    ],
)
def test_a_language_is_named_exactly_where_there_are_several(
    monkeypatch, languages, language, message
):
    module = "peftkit.backbones.processors"
    found = SimpleNamespace(lang_to_id=languages)
    monkeypatch.setattr(
        f"{module}.GenerationConfig", SimpleNamespace(from_pretrained=lambda location: found)
    )
    monkeypatch.setattr(f"{module}.load_tokenizer", lambda source: Whisper())
    source = MODELS / "whisper-tones" / "config.json"
    if message is None:
        assert SpeechProcessor(source, language).options["language"] == "german"
        return
    with pytest.raises(BackboneError, match=message):
        SpeechProcessor(source, language)


def test_languages_are_set_where_a_tokenizer_has_them(tokenizer):
    ids = {"eng_Latn": 5, "deu_Latn": 7}
    multilingual = SimpleNamespace(
        src_lang=None,
        tgt_lang=None,
        unk_token_id=3,
        convert_tokens_to_ids=lambda token: ids.get(token, 3),
    )
    assert set_languages(multilingual, "eng_Latn", "deu_Latn") == {"forced_bos_token_id": 7}
    assert (multilingual.src_lang, multilingual.tgt_lang) == ("eng_Latn", "deu_Latn")
    with pytest.raises(
        BackboneError,
        match=r"data\.target_language: the model's tokenizer knows no language 'german'",
    ):
        set_languages(multilingual, None, "german")
    assert set_languages(tokenizer, None, None) == {}
    with pytest.raises(BackboneError, match=r"takes no languages: leave out data\.source_language"):
        set_languages(tokenizer, "eng_Latn", None)


def test_one_run_is_measured_with_one_backbone(texts, monkeypatch):
    opened = open_run(texts)
    loads = []
    monkeypatch.setattr(
        prediction.peftkit,
        "load",
        lambda *args, load=peftkit.load: loads.append(args) or load(*args),
    )
    found = prediction.measure([opened], opened.task.read(opened.held_out()), batch_size=4)
    assert len(loads) == 1
    assert found.metrics["loss"] == pytest.approx(
        json.loads((texts / "after.json").read_text())["metrics"]["loss"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["predict", "{run}", "{run}", "--data", "{rows}", "--output", "{run}/x.jsonl"],
            "have no mean: name one run",
        ),
        (["evaluate", "{run}", "{run}"], "have no mean: name one run"),
        (
            ["predict", "{run}", "--data", "{rows}", "--output", "no/such/x.jsonl"],
            "there is no directory no/such",
        ),
        (["compare", "{run}", "--output", "no/such/x.md"], "there is no directory no/such"),
        (
            ["generate", "{run}", "--temperature", "-1"],
            "temperature: input should be greater than or equal to 0",
        ),
        (["merge", "{run}", "--output", "out", "--quantization", "nf4"], "a run has its own"),
    ],
)
def test_mistakes_on_the_command_line_are_reported_before_a_model_is_loaded(
    texts, capsys, monkeypatch, words, message
):
    monkeypatch.setattr(
        "peftkit.runs.opening.Opened.backbone", lambda self: pytest.fail("the work has begun")
    )
    rows = texts.parent / "held_out.jsonl"
    assert main([word.format(run=texts, rows=rows) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_size_of_zero_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--batch_size", "0"])
    assert "must be a whole number above 0, not '0'" in capsys.readouterr().err


def test_an_interruption_ends_the_writing_quietly(texts, monkeypatch, capsys):
    def interrupted(*_, **__):
        yield "the"
        raise KeyboardInterrupt

    monkeypatch.setattr("peftkit.tasks.generation.stream", interrupted)
    assert main(["generate", str(texts), "--prompt", "x"]) == 130
    assert capsys.readouterr().out == "the\n"


def test_a_run_is_merged_with_its_own_head_and_processor(pairs, tmp_path):
    assert main(["merge", str(pairs), "--output", str(tmp_path / "out")]) == 0
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    opened = open_run(pairs)
    batch = opened.task.processor("likes sea", "sea 1", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(
            merged(**batch).logits, opened.model().eval()(**batch).logits, atol=1e-5
        )
    assert peftkit.load_tokenizer(tmp_path / "out").vocab_size == opened.task.processor.vocab_size


def test_a_finished_run_is_opened_without_a_report_of_missing_weights(pairs, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, "transformers")
    source = open_run(pairs).config.model.source
    peftkit.load_backbone(source, task="sequence-classification", overrides={"num_labels": 7})
    assert "classifier" in caplog.text  # a new head is reported where no adapter brings it
    caplog.clear()
    open_run(pairs).model()
    assert caplog.text == ""


def test_a_finished_run_keeps_its_chat_template_when_the_file_is_gone(tmp_path, llama_dir):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}[assistant]"
    )
    values = config_values("chat", tmp_path, llama_dir)
    values["data"]["chat_template"] = str(file)
    finished = run("chat", values)
    file.unlink()
    task = open_run(finished).task
    assert task.prompt([], "hi") == "[user] hi</s>[assistant]"
