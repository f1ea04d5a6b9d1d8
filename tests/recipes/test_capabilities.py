"""What all recipes share: going on with an old adapter, replay, teachers, ensembles, thresholds,
packing.
"""

import json
import subprocess
import sys

import pytest

import peftkit
from peftkit.cli import main
from peftkit.errors import ConfigError, DataError
from peftkit.files import read_json
from peftkit.runs.opening import open_run
from tests.recipes.jobs import NAMES, config_values, rows_of, run, write_jsonl
from tests.training.job import own_port


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Leave the pictures of a report to the tests that look at them: they take half of the time."""
    monkeypatch.setattr("peftkit.runs.report.draw_all", lambda directory: {})


def text_job(directory, llama_dir, **sections):
    return config_values("text_classification", directory, llama_dir) | sections


def predicted(runs, data, output):
    assert main(["predict", *map(str, runs), "--data", str(data), "--output", str(output)]) == 0
    return [json.loads(line)["probabilities"]["up"] for line in output.read_text().splitlines()]


def test_training_continues_an_old_adapter_and_reports_what_is_forgotten(tmp_path, llama_dir):
    old = run("text_classification", text_job(tmp_path / "old", llama_dir))
    values = text_job(tmp_path / "new", llama_dir, start=str(old))
    values["data"] |= {
        "retention": str(tmp_path / "old" / "held_out.jsonl"),
        "replay": {"train": str(tmp_path / "old" / "train.jsonl"), "share": 0.5},
    }
    new = run("text_classification", values)
    before = read_json(new / "before.json")["metrics"]
    assert before["loss"] == pytest.approx(
        read_json(old / "after.json")["metrics"]["loss"], rel=1e-5
    )
    assert {"retained accuracy", "accuracy"} <= read_json(new / "after.json")["metrics"].keys()
    assert read_json(new / "task.json")["learned"]["counts"] == [
        10,
        10,
    ]  # ten new rows and ten old ones
    assert "retained accuracy" in (new / "report.md").read_text()


def test_a_trained_head_takes_no_new_labels(tmp_path, llama_dir):
    old = run("text_classification", text_job(tmp_path / "old", llama_dir))
    values = text_job(tmp_path / "new", llama_dir, start=str(old))
    write_jsonl(tmp_path / "new" / "train.jsonl", [{"text": "x", "label": "sideways"}])
    with pytest.raises(
        DataError, match="'sideways' is none of those that the adapter was trained on"
    ):
        run("text_classification", values)


@pytest.mark.parametrize(
    ("name", "sections", "message"),
    [
        ("token_classification", {}, "made by another recipe"),
        ("text_classification", {"adapter": {"method": "prefix"}}, "trained further as it is"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(tmp_path, llama_dir, name, sections, message):
    old = run("text_classification", text_job(tmp_path / "old", llama_dir))
    values = config_values(name, tmp_path / "new", llama_dir) | {"start": str(old)} | sections
    with pytest.raises(ConfigError, match=message):
        run(name, values)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path, llama_dir):
    from transformers import AutoModelForCausalLM

    from tests.conftest import byte_tokenizer, llama_config

    AutoModelForCausalLM.from_config(llama_config(vocab_size=100)).save_pretrained(
        tmp_path / "small"
    )
    byte_tokenizer().save_pretrained(tmp_path / "small")
    values = config_values("causal_lm", tmp_path, tmp_path / "small")
    with pytest.raises(ConfigError, match="the model has embeddings for 100"):
        run("causal_lm", values)


def test_fully_trained_embeddings_are_saved_and_loaded_again(tmp_path, llama_dir):
    adapter = {"method": "lora", "r": 4, "options": {"modules_to_save": ["bert.embeddings"]}}
    directory = run("text_classification", text_job(tmp_path, llama_dir, adapter=adapter))
    assert (directory / "after.json").exists()


def test_several_runs_predict_their_mean(tmp_path, llama_dir):
    runs = [
        run("text_classification", text_job(tmp_path / str(seed), llama_dir, seed=seed))
        for seed in (0, 1)
    ]
    data = tmp_path / "0" / "held_out.jsonl"
    alone = [predicted([each], data, tmp_path / "alone.jsonl") for each in runs]
    together = predicted(runs, data, tmp_path / "together.jsonl")
    assert together == pytest.approx([sum(pair) / 2 for pair in zip(*alone, strict=True)], abs=1e-6)
    assert alone[0] != alone[1]


def test_the_mean_of_generated_texts_is_refused(tmp_path, llama_dir, capsys):
    runs = [
        run("seq2seq", config_values("seq2seq", tmp_path / str(i), llama_dir, steps=1))
        for i in range(2)
    ]
    data = str(tmp_path / "0" / "held_out.jsonl")
    assert (
        main(["predict", *map(str, runs), "--data", data, "--output", str(tmp_path / "out.jsonl")])
        == 2
    )
    assert "writes texts, which have no mean" in capsys.readouterr().err


def test_a_student_learns_from_a_teacher_and_from_texts_without_labels(tmp_path, llama_dir):
    teacher = run("text_classification", text_job(tmp_path / "teacher", llama_dir))
    unlabelled = write_jsonl(
        tmp_path / "more.jsonl", [{"text": f"good story {i}"} for i in range(7)]
    )
    settings = {"runs": [str(teacher)], "weight": 1.0, "unlabelled": unlabelled}
    values = text_job(tmp_path / "student", llama_dir, teacher=settings)
    values["train"] |= {"max_steps": 5}
    student = run("text_classification", values)
    steps = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["items"] for line in steps if line["kind"] == "train") == 10 + 7
    agreed = text_job(tmp_path / "sure", llama_dir, teacher=settings | {"min_confidence": 1.0})
    assert run("text_classification", agreed)  # no text is that sure: the labelled rows alone


def test_a_teacher_with_other_labels_is_refused(tmp_path, llama_dir):
    teacher = run("text_classification", text_job(tmp_path / "teacher", llama_dir))
    values = text_job(tmp_path / "student", llama_dir, teacher={"runs": [str(teacher)]})
    write_jsonl(
        tmp_path / "student" / "train.jsonl",
        [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
    )
    write_jsonl(tmp_path / "student" / "held_out.jsonl", [{"text": "a", "label": "x"}])
    with pytest.raises(
        ConfigError, match=r"has the labels \['down', 'up'\], this run has \['x', 'y'\]"
    ):
        run("text_classification", values)


def test_the_threshold_of_the_highest_f1_is_found_and_kept(tmp_path, llama_dir):
    directory = run("text_classification", text_job(tmp_path, llama_dir, threshold="best-f1"))
    threshold = open_run(directory).task.learned["threshold"]
    assert 0 < threshold < 1
    chances = predicted([directory], tmp_path / "held_out.jsonl", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [
        "up" if chance >= threshold else "down" for chance in chances
    ]


@pytest.mark.parametrize("sections", [{"threshold": 0.4}, {"positive": "up"}])
def test_settings_for_two_classes_are_refused_with_three(tmp_path, llama_dir, sections):
    values = text_job(tmp_path, llama_dir, **sections)
    rows = [{"text": f"x {label}", "label": label} for label in ("up", "down", "sideways")]
    values["data"]["train"] = write_jsonl(tmp_path / "three.jsonl", rows)
    with pytest.raises(
        ConfigError, match="is for two classes; these rows have 3: down, sideways, up"
    ):
        run("text_classification", values)


def test_a_fixed_threshold_holds_from_the_start_and_the_positive_class_can_be_named(
    tmp_path, llama_dir
):
    values = text_job(tmp_path, llama_dir, threshold=0.999, positive="down")
    directory = run("text_classification", values)
    assert open_run(directory).task.learned["labels"] == ["up", "down"]
    for name in ("before", "after"):  # nothing is that sure to be "down"
        assert read_json(directory / f"{name}.json")["metrics"]["accuracy"] == 0.5
    assert "those of the class 'down'" in (directory / "report.md").read_text()


def test_a_metric_that_the_task_does_not_have_is_refused_before_training(tmp_path, llama_dir):
    values = text_job(tmp_path, llama_dir)
    values["train"] |= {"best": "acuracy"}
    with pytest.raises(ConfigError, match=r"train\.best is 'acuracy'.*did you mean 'accuracy'"):
        run("text_classification", values)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_augmented_rows_are_kept_for_a_resumed_run(tmp_path, llama_dir):
    values = text_job(tmp_path, llama_dir, augment={"copies": 1, "word_dropout": 0.3})
    directory = run("text_classification", values)
    assert len((directory / "augmented_rows.jsonl").read_text().splitlines()) == 20
    (directory / "report.md").unlink()  # as if the run had been stopped before its end
    assert run("text_classification", values)


def test_a_language_models_forgetting_is_measured_by_its_loss(tmp_path, llama_dir):
    values = config_values("causal_lm", tmp_path, llama_dir)
    values["data"] |= {
        "retention": write_jsonl(tmp_path / "old.jsonl", [{"text": "an old tale of the sea"}] * 3)
    }
    assert {"retained loss", "retained perplexity"} <= read_json(
        run("causal_lm", values) / "after.json"
    )["metrics"].keys()


def test_texts_longer_than_the_positions_are_refused(tmp_path, llama_dir):
    values = text_job(tmp_path, llama_dir)
    values["data"] |= {
        "max_length": 400,
        "train": write_jsonl(
            tmp_path / "long.jsonl",
            [*rows_of("text_classification", tmp_path, 4), {"text": "x " * 300, "label": "up"}],
        ),
    }
    with pytest.raises(
        ConfigError,
        match=r"long\.jsonl, row 5: a text has 302 tokens, and the model knows 256 positions: ",
    ):
        run("text_classification", values)


@pytest.mark.parametrize(("share", "count"), [(0.3, 3), (0.001, 2)])
def test_held_out_rows_are_split_off_and_kept(tmp_path, llama_dir, share, count):
    """However small the share is, each of the two classes is held out once."""
    values = text_job(tmp_path, llama_dir)
    values["data"]["evaluation"] = share
    directory = run("text_classification", values)
    held_out = (directory / "evaluation.jsonl").read_text().splitlines()
    assert len(held_out) == count
    assert open_run(directory).held_out() == str(directory / "evaluation.jsonl")
    assert len(open_run(directory).held_out_rows()) == count


def test_scores_are_learned_on_their_own_scale(tmp_path, llama_dir):
    values = config_values("text_pair", tmp_path, llama_dir)
    rows = [
        row | {"score": 100.0 + 20 * row["label"]} for row in rows_of("text_pair", tmp_path, 12)
    ]
    values["data"] |= {"train": write_jsonl(tmp_path / "scores.jsonl", rows), "target": "score"}
    values["data"]["evaluation"] = values["data"]["train"]
    values["train"] |= {"best": "mean_absolute_error"}
    after = read_json(run("text_pair", values) / "after.json")
    assert {"spearman", "pearson", "mean_absolute_error", "ndcg@10"} <= after["metrics"].keys()
    assert all(90 < float(each) < 130 for each in after["predictions"])


def test_rows_of_words_with_tags_train_a_tagger(tmp_path, llama_dir):
    values = config_values("token_classification", tmp_path, llama_dir)
    rows = [{"tokens": ["Rome", "is", str(i)], "tags": ["NOUN", "VERB", "NUM"]} for i in range(8)]
    values["data"] |= {"train": write_jsonl(tmp_path / "tags.jsonl", rows), "label_on": "last"}
    values["data"]["evaluation"] = values["data"]["train"]
    after = read_json(run("token_classification", values) / "after.json")["metrics"]
    assert "tag_accuracy" in after
    assert "entity_f1" not in after


def test_a_folder_of_images_has_its_classes_in_its_folders(tmp_path, llama_dir):
    values = config_values("image_classification", tmp_path, llama_dir)
    for row in rows_of("image_classification", tmp_path, 8):
        folder = tmp_path / "images" / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / row["image"]).rename(folder / row["image"])
    values["data"] = {"train": str(tmp_path / "images"), "evaluation": 0.25}
    assert open_run(run("image_classification", values)).task.learned["labels"] == ["blue", "red"]


def test_a_language_model_is_streamed_and_classifiers_are_not(
    tmp_path, llama_dir, capsys, monkeypatch
):
    chat = run("chat", config_values("chat", tmp_path / "chat", llama_dir, steps=1))
    capsys.readouterr()
    assert main(["generate", str(chat), "--prompt", "price?", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out
    lines = iter(["price 1?", "", "price 2?"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end(lines))
    classes = run("text_classification", text_job(tmp_path / "classes", llama_dir))
    assert main(["generate", str(classes), "--prompt", "x"]) == 2
    assert "use `peftkit predict`" in capsys.readouterr().err


def _end(lines):
    raise EOFError


@pytest.mark.parametrize(
    ("recipe", "packing"), [("causal_lm", True), ("chat", True), ("chat", "batch")]
)
def test_recipes_learn_from_packs_and_refuse_packs_with_a_prefix(
    tmp_path, llama_dir, recipe, packing
):
    values = config_values(recipe, tmp_path, llama_dir)
    values["data"] |= {"packing": packing}
    directory = run(recipe, values)
    after, before = (
        read_json(directory / f"{when}.json")["metrics"]["perplexity"]
        for when in ("after", "before")
    )
    assert after < before
    values["adapter"] = {"method": "prefix"}
    with pytest.raises(
        ConfigError, match=r"data\.packing cannot be used with adapter\.method prefix"
    ):
        run(recipe, values | {"run_dir": str(tmp_path / "other")})


def test_a_batch_in_one_pack_is_the_same_step(tmp_path, llama_dir):
    found = {}
    for packing in (False, "batch"):
        values = config_values("chat", tmp_path / str(packing), llama_dir)
        values["data"] |= {"packing": packing}
        values["train"] |= {"precision": "no"}
        found[packing] = read_json(run("chat", values) / "after.json")["metrics"]["loss"]
    assert found["batch"] == pytest.approx(found[False], rel=2e-3)


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_and_measure_as_one(name, tmp_path, llama_dir):
    """The same loss after the same steps on the same 16 rows of 23, rounding apart."""
    import yaml

    from tests.recipes.jobs import ROOT

    found = {}
    for processes in (1, 2):
        values = config_values(name, tmp_path / str(processes), llama_dir, count=23)
        values["train"] |= {"batch_size": 4 // processes, "precision": "no"}
        config = tmp_path / f"{processes}.yaml"
        config.write_text(yaml.safe_dump(values))
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--cpu",
            "--num_processes",
            str(processes),
            "--main_process_port",
            own_port(),
        ]
        script = str(ROOT / "recipes" / f"{name}.py")
        done = subprocess.run(
            [*command, script, "--config", str(config)], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = read_json(tmp_path / str(processes) / "run" / "after.json")
    assert found[2]["metrics"]["loss"] == pytest.approx(
        found[1]["metrics"]["loss"], rel=2e-3, abs=1e-3
    )
    assert len(found[2]["predictions"]) == len(found[1]["predictions"])


@pytest.mark.parametrize("name", ["text_classification", "speech_recognition"])
def test_a_merged_model_is_measured_and_written_with_its_processor(name, tmp_path, llama_dir):
    directory = run(name, config_values(name, tmp_path, llama_dir) | {"merge": True})
    assert "| before | after | merged |" in (directory / "report.md").read_text()
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= {
        p.name for p in (directory / "merged").iterdir()
    }
    model = peftkit.load_backbone(directory / "merged", task=open_run(directory).task.head)
    assert peftkit.record(model)["load_backbone"]["new"] == []


def test_a_curriculum_of_images_is_refused_since_they_have_no_length(tmp_path, llama_dir):
    values = config_values("image_classification", tmp_path, llama_dir)
    values["train"]["curriculum"] = "length"
    with pytest.raises(ConfigError, match="goes by tokens, and these examples have none"):
        run("image_classification", values)


def test_a_curriculum_of_packs_is_refused_since_they_are_equally_long(tmp_path, llama_dir):
    values = config_values("chat", tmp_path, llama_dir)
    values["data"] |= {"packing": True}
    values["train"] |= {"curriculum": "length"}
    with pytest.raises(ConfigError, match=r"set data\.packing: batch"):
        run("chat", values)
