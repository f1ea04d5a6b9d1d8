"""The text of each token, and what is left out of long texts."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from peftkit.data.preview.tokens import token_pieces, token_section

TEXTS = ["two  spaces\n", "naïve 日本語 🤖", "<|im_start|>user\nHi<|im_end|>", "👩‍👩‍👧 e\u0301"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_are_the_text_and_have_all_its_tokens(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(ids, ["read"] * len(ids), tokenizer)
    assert "".join(piece.text for piece in pieces) == text
    assert [number for piece in pieces for number in piece.ids] == ids


@pytest.mark.parametrize("text", ["Two  words", "🤖 b", "naïve", "b 🤖🤖"])
def test_the_bytes_of_a_sentencepiece_vocabulary_are_put_together_too(text):
    tokenizer = metaspace_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = token_pieces(ids, ["read"] * len(ids), tokenizer)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(piece.text for piece in pieces)
    assert [number for piece in pieces for number in piece.ids] == ids


def metaspace_tokenizer():
    """A tokenizer as Llama 2's: words begin with ▁, and what is unknown falls back to bytes."""
    letters = sorted(set("▁Twodsbnave "))
    tokens = ["<unk>", "<s>", "</s>", *letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


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
