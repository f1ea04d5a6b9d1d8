"""The preview of each recipe: what is read, learned and cut of its rows."""

import pytest

from peftkit.config.reading import build
from peftkit.data.preview.page import page
from peftkit.data.preview.terminal import in_terminal
from peftkit.runs.data_preview import preview_rows
from peftkit.runs.recipes import load_recipe, recipe_named
from peftkit.runs.training_rows import read_training_rows
from tests.data.preview.test_page import read
from tests.recipes.jobs import NAMES, config_values, run, write_jsonl


def preview_of(name, directory, llama_dir, rows=None, **data):
    values = config_values(name, directory, llama_dir)
    values["data"] |= data
    if rows is not None:
        values["data"]["train"] = write_jsonl(directory / "train.jsonl", rows)
    recipe = load_recipe(recipe_named(name))
    config = build(recipe.Config, values, "a test")
    task = recipe.make_task(config)
    return preview_rows(task, config, read_training_rows(task, config), name, count=3)


def said(preview, number, kind, section=0):
    pieces = preview.examples[number].sections[section].pieces
    return "".join(piece.text for piece in pieces if piece.kind == kind)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_preview(name, tmp_path, llama_dir):
    preview = preview_of(name, tmp_path, llama_dir)
    assert len(preview.examples) == 3
    assert preview.examples[0].where.endswith("train.jsonl, row 1")
    reader = read(page(preview))
    assert reader.text("learned")
    assert "steps in an epoch" in in_terminal(preview)
    assert preview.statistics.rows == 10


def test_a_dialogue_shows_its_answers_as_learned_and_its_end_as_cut(tmp_path, llama_dir):
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "2." * 40},
    ]
    preview = preview_of("chat", tmp_path, llama_dir, [{"messages": messages}], max_length=60)
    learned, cut = said(preview, 0, "learned"), said(preview, 0, "cut")
    assert learned.startswith("1.<|im_end|>")
    assert learned.removeprefix("1.<|im_end|>") + cut == "2." * 40 + "<|im_end|>\n"
    assert cut
    assert "one?" in said(preview, 0, "read")
    assert any("within an answer" in warning for warning in preview.warnings)


def test_a_row_with_nothing_to_learn_is_shown_with_the_reason(tmp_path, llama_dir):
    lost = [{"role": "user", "content": "a" * 90}, {"role": "assistant", "content": "b"}]
    short = [lost[0] | {"content": "a"}, lost[1]]
    rows = [{"messages": messages} for messages in (lost, lost, short)]
    preview = preview_of("chat", tmp_path, llama_dir, rows)
    assert [shown.learned for shown in preview.examples] == [0, 0, 2]
    assert "b<|im_end|>" in said(preview, 0, "cut")
    assert preview.examples[0].notes[-1].startswith("No token of it is learned")
    assert preview.warnings[0].startswith("Training stops at these rows: 2 of 3 rows")
    nothing = preview_of("chat", tmp_path, llama_dir, rows[:2])
    assert len(nothing.statistics.lengths) == 0
    assert read(page(nothing)).text("cut")
    assert "examples" in in_terminal(nothing)


def test_the_texts_of_a_pack_are_sections_with_their_rows(tmp_path, llama_dir):
    preview = preview_of("causal_lm", tmp_path, llama_dir, packing=True, max_length=256)
    (first, *_) = preview.examples
    assert len(first.sections) > 1
    assert first.sections[1].name.startswith("text 2: ")
    assert "train.jsonl, row" in first.sections[0].name
    assert first.where == f"{len(first.sections)} texts that do not see each other, pack 1 of 4"
    assert first.tokens <= 256
    for section in first.sections:
        assert section.pieces[0].kind == "read"  # nothing predicts a text's first token


def test_a_text_for_a_class_shows_its_end_as_cut_and_its_label_as_learned(tmp_path, llama_dir):
    rows = [{"text": "ab" * 20, "label": "up"}, {"text": "b", "label": "down"}]
    preview = preview_of("text_classification", tmp_path, llama_dir, rows, max_length=10)
    assert said(preview, 0, "cut").replace(" ", "") == "ab" * 16  # two of ten tokens are special
    assert said(preview, 0, "learned", section=1) == "up"
    assert said(preview, 1, "cut") == ""
    assert preview.statistics.classes == (("down", 1), ("up", 1))


def test_of_a_pair_the_longer_text_is_cut_where_it_ends(tmp_path, llama_dir):
    row = {"text": "a" * 30, "other": "bc", "label": "1"}
    preview = preview_of(
        "text_pair", tmp_path, llama_dir, [row, row | {"label": "0"}], max_length=12
    )
    kinds = [(piece.text.strip(), piece.kind) for piece in preview.examples[0].sections[0].pieces]
    assert kinds.count(("a", "read")) == 7  # 12 without three special tokens, b and c
    assert kinds.count(("a", "cut")) == 23
    assert kinds.index(("b", "read")) > kinds.index(("a", "cut"))


def test_tags_stand_at_the_tokens_that_carry_them_and_words_beyond_the_end_are_cut(
    tmp_path, llama_dir
):
    row = {"tokens": ["Anna", "saw", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}
    preview = preview_of("token_classification", tmp_path, llama_dir, [row] * 2, max_length=9)
    (section,) = preview.examples[0].sections
    tagged = [(piece.text.strip(), piece.kind, piece.tag) for piece in section.pieces if piece.tag]
    assert tagged == [
        ("a", "learned", "B-PER"), ("s", "learned", "O"), ("Rome", "cut", "B-LOC")
    ]  # fmt: skip
    assert preview.examples[0].notes == ("The last 1 of 3 words are beyond data.max_length.",)


def test_a_translation_shows_both_texts_and_what_is_cut_of_them(tmp_path, llama_dir):
    row = {"source": "s" * 20, "target": "t" * 20}
    preview = preview_of("seq2seq", tmp_path, llama_dir, [row], max_length=8)
    assert said(preview, 0, "read") == "s" * 7 + "</s>"
    assert said(preview, 0, "cut") == "s" * 13
    assert said(preview, 0, "learned", section=1) == "t" * 7 + "</s>"
    assert said(preview, 0, "cut", section=1) == "t" * 13


def test_an_image_is_shown_as_the_model_sees_it(tmp_path, llama_dir):
    import io

    import numpy as np
    from PIL import Image

    preview = preview_of("image_classification", tmp_path, llama_dir)
    picture, label = preview.examples[0].sections
    pixels = np.asarray(Image.open(io.BytesIO(picture.picture.png)).convert("RGB"))
    red, green, blue = pixels.reshape(-1, 3).mean(0)
    assert label.pieces[0].text == "red"
    assert abs(red - 220) < 3
    assert abs(green - 30) < 3
    assert abs(blue - 30) < 3


def test_a_sound_is_shown_with_its_length_and_what_is_written(tmp_path, llama_dir):
    preview = preview_of("speech_recognition", tmp_path, llama_dir)
    sound, text = preview.examples[0].sections
    assert sound.wave.seconds == pytest.approx(1.0)
    assert max(sound.wave.highs) == pytest.approx(12000 / 32768, abs=0.02)
    assert sound.picture.png.startswith(b"\x89PNG")
    assert "".join(piece.text for piece in text.pieces).startswith("low")


def test_rows_sorted_by_class_are_not_mistaken_for_rows_of_one_class(tmp_path, llama_dir):
    rows = [{"text": "x", "label": "up"}] * 1499 + [{"text": "y", "label": "down"}]
    preview = preview_of("text_classification", tmp_path, llama_dir, rows)
    assert preview.statistics.seen_rows == 1000
    assert dict(preview.statistics.classes) == {"up": 1499, "down": 1}


@pytest.mark.parametrize("name", ["chat", "token_classification", "image_classification"])
def test_a_run_shows_what_it_learns_in_its_report_and_in_a_page(name, tmp_path, llama_dir):
    directory = run(name, config_values(name, tmp_path, llama_dir, steps=1))
    report = (directory / "report.md").read_text("utf-8")
    section = report.partition("## What is learned")[2].partition("## Settings")[0]
    assert "[More examples, token by token](data.html)" in section
    assert ("⟦It is 5.<|im_end|>⟧" in section) == (name == "chat")
    assert ("⟦red⟧" in section) == (name == "image_classification")
    assert ("lengths.png" in section) == (name != "image_classification")
    assert (directory / "lengths.png").exists() == (name != "image_classification")
    assert read((directory / "data.html").read_text("utf-8")).text("learned")


def test_a_row_that_counts_for_more_or_less_says_so(tmp_path, llama_dir):
    row = {"text": "a", "label": "up"}
    rows = [row | {"weight": 0.5}, row | {"label": "down", "weight": 1}, row]
    preview = preview_of("text_classification", tmp_path, llama_dir, rows)
    assert [shown.notes for shown in preview.examples] == [
        ("Its weight in the loss is 0.5.",),
        (),
        (),
    ]


def test_what_was_decided_of_the_rows_is_said(tmp_path, llama_dir):
    rows = [
        {"text": "a", "label": "up"},
        {"text": "b", "label": "down"},
        {"text": "", "label": "up"},
    ]
    preview = preview_of("text_classification", tmp_path, llama_dir, rows, skip_empty=True)
    assert preview.statistics.rows == 2
    assert "data.skip_empty left out 1 of 3 rows" in preview.remarks
