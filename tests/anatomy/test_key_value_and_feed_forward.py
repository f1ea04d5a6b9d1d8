"""Which layers make keys and values, and which end a feed-forward sublayer."""

import pytest

from peftkit.anatomy import attentions, feed_forward_outputs, key_value_projections
from tests.architectures import ARCHITECTURES

FOUND = {
    "llama": ({"k_proj", "v_proj"}, {"down_proj"}),
    "gpt2": ({"c_attn"}, {"c_proj"}),
    "bloom": ({"query_key_value"}, {"dense_4h_to_h"}),
    "bert": ({"key", "value"}, {"dense"}),
    "t5": ({"k", "v"}, {"wo"}),
    "distilbert": ({"k_lin", "v_lin"}, {"lin2"}),
    "bart": ({"k_proj", "v_proj"}, {"fc2"}),
    "mixtral": ({"k_proj", "v_proj"}, set()),
    "mamba2": (set(), set()),
    "resnet": (set(), set()),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_layers_that_ia3_scales_are_found_from_the_structure(name):
    model = ARCHITECTURES[name].model()
    keys_and_values = []
    for attention in attentions(model):
        keys_and_values += key_value_projections(model, attention)
    ends = [{name.rpartition(".")[2] for name in names}
            for names in (keys_and_values, feed_forward_outputs(model))]  # fmt: skip
    assert tuple(ends) == FOUND[name]
