"""The text of each token, and what is left out of long texts."""

import pytest
from transformers import BertTokenizer

from peftkit.data.preview.tokens import token_pieces, token_section

TEXTS = ["two  spaces\n", "naïve 日本語 🤖", "<|im_start|>user\nHi<|im_end|>", "👩‍👩‍👧 e\u0301"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_are_the_text_and_have_all_its_tokens(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(ids, ["read"] * len(ids), tokenizer)
    assert "".join(piece.text for piece in pieces) == text
    assert [number for piece in pieces for number in piece.ids] == ids


def test_the_bytes_of_a_character_are_one_piece(tokenizer):
    ids = tokenizer("a🤖b")["input_ids"]
    pieces = token_pieces(ids, ["read"] * len(ids), tokenizer)
    assert [piece.text for piece in pieces] == ["a", "🤖", "b"]
    assert [len(piece.ids) for piece in pieces] == [1, 4, 1]


def test_a_character_that_is_cut_in_the_middle_is_shown_on_both_sides(tokenizer):
    ids = tokenizer("🤖b")["input_ids"]
    pieces = token_pieces(ids, ["learned", "learned", "cut", "cut", "cut"], tokenizer)
    assert [piece.kind for piece in pieces if "\ufffd" in piece.text] == ["learned", "cut"]
    assert [piece.text for piece in pieces][-1] == "b"


def test_special_tokens_are_told_from_a_text_that_looks_alike(tokenizer):
    ids = [*tokenizer("<|im_end|>")["input_ids"], *tokenizer("|>")["input_ids"]]
    pieces = token_pieces(ids, ["read"] * len(ids), tokenizer)
    assert [piece.is_special for piece in pieces] == [True, False, False]


def test_of_a_long_text_the_beginning_and_what_is_around_the_cut_are_shown(tokenizer):
    ids = [4 + number % 90 for number in range(9000)]
    kinds = ["learned"] * 5000 + ["cut"] * 4000
    section = token_section("", ids, kinds, tokenizer)
    shown = sum(len(piece.ids) for piece in section.pieces)
    assert shown < 3400
    assert shown + sum(left_out for _, left_out in section.omitted) == 9000
    (after_learned, _), (after_cut, _) = section.omitted
    assert section.pieces[after_learned].kind == "learned"
    assert after_cut == len(section.pieces)


def test_word_pieces_have_no_space_that_is_not_there(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "play", "##ing"]))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("play playing")["input_ids"]
    pieces = token_pieces(ids, ["read"] * len(ids), tokenizer)
    assert [piece.text for piece in pieces] == ["[CLS]", "play", " play", "ing", "[SEP]"]
