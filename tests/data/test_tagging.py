"""Words, tags and tokens fall into place, whatever the tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peftkit.data.tagging import find_spans, place_words, read_tagged_rows, read_tags, split_words
from peftkit.errors import DataError
from peftkit.tasks.token_classification import TokenClassificationTask
from tests.recipes.jobs import MODELS, write_jsonl

ROW = {
    "text": "Anna Müller flew to Rome-Fiumicino.",
    "spans": [{"start": 0, "end": 11, "label": "PER"}, {"start": 20, "end": 24, "label": "LOC"}],
}


def test_a_text_becomes_words_with_tags_and_back():
    text, offsets = split_words(ROW)
    assert [text[a:b] for a, b in offsets] == [
        "Anna",
        "Müller",
        "flew",
        "to",
        "Rome",
        "-",
        "Fiumicino",
        ".",
    ]
    found = read_tags(ROW)
    assert found == ["B-PER", "I-PER", "O", "O", "B-LOC", "O", "O", "O"]
    assert find_spans(ROW, found) == [
        {"start": 0, "end": 11, "label": "PER", "text": "Anna Müller"},
        {"start": 20, "end": 24, "label": "LOC", "text": "Rome"},
    ]


def test_chinese_characters_are_words_and_neighbouring_entities_stay_apart():
    row = {
        "text": "江泽民北京",
        "spans": [{"start": 0, "end": 3, "label": "PER"}, {"start": 3, "end": 5, "label": "LOC"}],
    }
    assert read_tags(row) == ["B-PER", "I-PER", "I-PER", "B-LOC", "I-LOC"]
    two = {
        "text": "ab cd",
        "spans": [{"start": 0, "end": 2, "label": "X"}, {"start": 3, "end": 5, "label": "X"}],
    }
    assert read_tags(two) == ["B-X", "B-X"]


@pytest.mark.parametrize("label_on", ["first", "last"])
def test_each_word_has_the_token_that_holds_its_first_or_last_letter(tokenizer, label_on):
    text, offsets = split_words(ROW)
    [(encoding, places)] = place_words([ROW], tokenizer, max_length=200, label_on=label_on)
    assert len(places) == len(offsets)
    whole = tokenizer(text, return_offsets_mapping=True)
    for place, (start, end) in zip(places, offsets, strict=True):
        at, to = whole["offset_mapping"][place]
        assert (at == start) if label_on == "first" else (to == end)
    assert "offset_mapping" not in encoding


def test_words_behind_the_longest_example_have_no_token(tokenizer):
    [(_, places)] = place_words([ROW], tokenizer, max_length=6, label_on="first")
    assert places[0] == 0
    assert places[2:] == [None] * 6


def test_words_are_placed_by_a_tokenizer_of_whole_words():
    backend = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[CLS]": 1, "anna": 2, "flew": 3, "to": 4}, unk_token="[UNK]")
    )
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.Lowercase(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    row = {"tokens": ["Anna", "flew", "to", "Rome"]}
    [(encoding, places)] = place_words([row], tokenizer, max_length=9, label_on="first")
    assert [encoding["input_ids"][place] for place in places] == [2, 3, 4, 0]


def test_tagging_refuses_a_slow_tokenizer():
    from transformers import ByT5Tokenizer

    with pytest.raises(DataError, match="returns no character offsets"):
        place_words([ROW], ByT5Tokenizer(), max_length=9, label_on="first")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "there are 2 tokens and 1 tags"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "word 2 is empty; leave it out, and its tag"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "word 2 is None; it must be a text"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "'a b' is not JSON, as 'tokens' must be"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "'tokens' is {'a': 1}; it must be a list of texts"),
        ({"tokens": [], "tags": []}, "'tokens' holds no words: leave the row out"),
        ({"tokens": ["a"], "tags": None}, "there are 1 tokens and no tags"),
        ({"text": " ", "spans": []}, "'text' is blank: leave the row out"),
        ({"text": None, "spans": []}, "neither 'tokens' .*: leave the row out"),
        ({"text": "abc", "spans": None}, "'spans' is None"),
        (
            {"text": "abc", "spans": [{"start": 1, "end": 9, "label": "X"}]},
            "within the 3 characters",
        ),
        (
            {
                "text": "abc",
                "spans": [
                    {"start": 0, "end": 2, "label": "X"},
                    {"start": 1, "end": 3, "label": "Y"},
                ],
            },
            "overlaps another",
        ),
        (
            {"text": "abc", "spans": [{"start": "0", "end": 2, "label": "X"}]},
            "within the 3 characters",
        ),
        (
            {"text": "abc", "spans": [{"start": 0, "end": 1.5, "label": "X"}]},
            "within the 3 characters",
        ),
        ({"text": "abc", "spans": [[0, 2]]}, "within the 3 characters"),
        ({"text": "abc", "spans": [["PER", 0, 2]]}, "within the 3 characters"),
        ({"text": "abc", "spans": "X"}, "'X' is not JSON, as 'spans' must be"),
    ],
)
def test_a_bad_row_of_tagged_words_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        list(read_tagged_rows(write_jsonl(tmp_path / "rows.jsonl", [row]), {}))


def test_spans_may_be_triples_and_answers_are_not_needed_where_they_are_predicted(tmp_path):
    triples = [list(span.values()) for span in ROW["spans"]]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": ROW["text"], "entities": triples}])
    assert read_tagged_rows(path, {"spans": "entities"}) == [ROW]
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": "a"}])
    assert read_tagged_rows(path, {"spans": "entities"}, labelled=False) == [{"text": "a"}]
    with pytest.raises(DataError, match="there is no column 'entities'"):
        read_tagged_rows(path, {"spans": "entities"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a"], "pos": ["X"]}, "no 'tokens' and no 'tags'.*{tokens: words, tags: pos}"),
        ({"tokens": ["a"], "pos_tags": ["X"]}, "no 'tags'.*{tags: pos_tags}"),
        ({"text": "a", "spam": [], "span": []}, "no 'spans'.*{spans: span}"),
    ],
)
def test_a_file_without_words_or_tags_is_told_how_to_name_its_columns(tmp_path, row, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=message):
        read_tagged_rows(path, {})


def test_lists_may_be_written_as_json_as_in_csv(tmp_path):
    (tmp_path / "rows.csv").write_text('tokens,tags\n"[""Ada"", ""ran""]","[""B-PER"", ""O""]"\n')
    rows = read_tagged_rows(str(tmp_path / "rows.csv"), {})
    assert rows == [{"tokens": ["Ada", "ran"], "tags": ["B-PER", "O"]}]


def test_rows_with_words_and_rows_with_text_may_be_in_one_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"tokens": ["Ada"], "tags": ["B-PER"], "text": null, "spans": null}\n'
        '{"tokens": null, "tags": null, "text": "Ada", "spans": [[0, 3, "PER"]]}\n'
    )
    rows = read_tagged_rows(str(tmp_path / "rows.jsonl"), {})
    assert [read_tags(row) for row in rows] == [["B-PER"], ["B-PER"]]


def tagger_of_whole_words():
    """A tagger whose tokenizer has one token for 北京, as XLM-R's has."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "北京": 1, "在": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]"
    )
    data = SimpleNamespace(max_length=9, label_on="first")
    tagger = TokenClassificationTask(SimpleNamespace(data=data), tokenizer)
    tagger.learned = {"labels": ["O", "B-LOC", "I-LOC"]}
    return tagger


class Chances(torch.nn.Module):
    """Gives 北京 the tag B-LOC, all else O."""

    def forward(self, input_ids, **_):
        city = torch.tensor([0.0, 5.0, 1.0])
        return SimpleNamespace(
            logits=torch.where((input_ids == 1)[..., None], city, torch.tensor([5.0, 0.0, 0.0]))
        )


@pytest.mark.parametrize("label_on", ["first", "last"])
def test_words_that_share_a_token_share_its_entity(label_on):
    tagger = tagger_of_whole_words()
    tagger.config.data.label_on = label_on
    row = {"text": "在 北京 在", "spans": [{"start": 2, "end": 4, "label": "LOC"}]}
    (example,) = tagger.examples([row])
    assert example.labels == [0, 1, 0]
    assert tagger.remarks() == "4 words"
    found = tagger.outputs(Chances(), [row], Accelerator(cpu=True), batch_size=1)
    assert tagger.predictions([row], found) == [
        {"predicted_tags": read_tags(row), "predicted_spans": [row["spans"][0] | {"text": "北京"}]}
    ]
    words_alone = {"tokens": ["在"]}
    assert tagger.predictions([words_alone], [found[0][:1]]) == [{"predicted_tags": ["O"]}]


def test_the_models_of_the_repository_keep_each_character_apart():
    from peftkit.backbones.loading import load_tokenizer

    tokenizer = load_tokenizer(MODELS / "char-bert-zh" / "config.json")
    row = {"text": "1998年江泽民在北京", "spans": []}
    [(encoding, places)] = place_words([row], tokenizer, max_length=64, label_on="first")
    characters = [token for token in encoding["input_ids"][1:-1]]
    assert len(characters) == len(row["text"])
    assert places == [1, *range(5, 12)]
