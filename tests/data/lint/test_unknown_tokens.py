import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peftkit.data.lint.items import LintItem
from peftkit.data.lint.unknown_tokens import find_unknown_tokens


@pytest.fixture
def tokenizer():
    words = {"[UNK]": 0, "the": 1, "train": 2, "leaves": 3}
    model = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")


def test_rows_with_unknown_tokens_are_found_with_their_share(tokenizer):
    rows = [
        LintItem("a, row 1", "the train leaves"),
        LintItem("a, row 2", "the train", answer="leaves ☃"),
    ]
    (finding,) = find_unknown_tokens(rows, tokenizer)
    assert (finding.count, finding.rows) == (1, ("a, row 2",))
    assert "of 2 rows has tokens that the tokenizer does not know (14.3% of all)" in finding.what


def test_known_words_are_not_found(tokenizer):
    assert find_unknown_tokens([LintItem("a, row 1", "the train")], tokenizer) == []


def test_a_tokenizer_of_bytes_and_an_image_processor_have_no_unknown_tokens():
    assert find_unknown_tokens([LintItem("a, row 1", "☃")], None) == []
    assert find_unknown_tokens([LintItem("a, row 1", "☃")], object()) == []
