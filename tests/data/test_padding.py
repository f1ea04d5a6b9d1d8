import pytest

from peftkit.data.padding import pad_with, padding_token
from peftkit.errors import DataError


def test_a_tokenizer_without_padding_and_end_is_refused_before_anything_is_padded(tokenizer):
    assert padding_token(tokenizer) == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    for refuses in (padding_token, pad_with):
        with pytest.raises(DataError, match=r"neither a padding token nor an end-of-sequence"):
            refuses(tokenizer)
