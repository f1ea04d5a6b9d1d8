"""A prefix in every way that models write attention, against concatenation in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peftkit.methods.prefix.attention import AttentionWithPrefix, Prefix
from peftkit.methods.prefix.matrix_products import Heads

BATCH, HEADS, GROUPS, TOKENS, WIDTH, VALUE_WIDTH, COUNT = 2, 4, 2, 5, 6, 3, 3
SCALE = 1 / math.sqrt(WIDTH)
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def problem(groups=GROUPS, value_width=VALUE_WIDTH):
    torch.manual_seed(3)
    query, key = random(BATCH, HEADS, TOKENS, WIDTH), random(BATCH, groups, TOKENS, WIDTH)
    value = random(BATCH, groups, TOKENS, value_width)
    prefix = Prefix(
        random(groups, COUNT, WIDTH),
        random(groups, COUNT, value_width),
        Heads(HEADS, batches=(BATCH,)),
    )
    return query, key, value, prefix


def repeated(x):
    return x.repeat_interleave(HEADS // x.shape[-3], dim=-3)


def expected(query, key, value, prefix, mask=None, change=lambda scores: scores, own_bias=0.0):
    """softmax(q [Pk; K]^T) [Pv; V]: all scores changed alike, only the real keys masked."""
    keys, values = (
        repeated(x)[None].expand(BATCH, -1, -1, -1) for x in (prefix.keys, prefix.values)
    )
    ours = change(query @ keys.mT) + own_bias
    theirs = change(query @ repeated(key).mT)
    if mask is not None:
        theirs = (
            theirs.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else theirs + mask
        )
    weights = torch.cat([ours, theirs], dim=-1).softmax(-1)
    return weights @ torch.cat([values, repeated(value)], dim=-2)


def joined(prefix, compute):
    with AttentionWithPrefix(prefix) as attention:
        result = compute()
    assert attention.has_joined
    return result


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def scaled(scores):
    return scores * SCALE


PADDED = torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool)
PADDED[1, ..., :2] = False


@pytest.mark.parametrize(
    "mask", [None, CAUSAL, PADDED, PADDED & CAUSAL], ids=["none", "causal", "padded", "both"]
)
@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_prefix_joins_scaled_dot_product_attention_with_any_mask(mask, floating, grouped):
    query, key, value, prefix = problem()
    want = expected(query, key, value, prefix, mask, scaled)
    if floating and mask is not None:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(
            ~mask, torch.finfo(torch.float64).min
        )
    keys, values = (key, value) if grouped else (repeated(key), repeated(value))
    call = F.scaled_dot_product_attention
    same(
        joined(prefix, lambda: call(query, keys, values, attn_mask=mask, enable_gqa=grouped)), want
    )


@pytest.mark.parametrize("queries", [TOKENS, 2], ids=["square", "top left"])
def test_the_causal_flag_means_the_same_with_a_prefix(queries):
    query, key, value, prefix = problem()
    query, (key, value) = query[:, :, :queries], (repeated(key), repeated(value))
    want = expected(query, key, value, prefix, CAUSAL[:queries], scaled)
    same(
        joined(prefix, lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True)),
        want,
    )


def test_a_prefix_joins_a_single_query_packed_by_groups():
    query, key, value, prefix = problem()
    want = expected(query[:, :, :1], key, value, prefix, None, scaled)
    packed = query[:, :, :1].reshape(BATCH, GROUPS, HEADS // GROUPS, WIDTH)
    found = joined(prefix, lambda: F.scaled_dot_product_attention(packed, key, value))
    same(found.reshape(want.shape), want)


def test_a_prefix_joins_attention_in_steps_on_four_axes():
    query, key, value, prefix = problem()

    def compute():
        scores = torch.matmul(query, repeated(key).transpose(2, 3)) * SCALE
        scores = scores.masked_fill(~CAUSAL, torch.finfo(torch.float64).min)
        weights = F.dropout(
            F.softmax(scores, dim=-1, dtype=torch.float64), p=0.1, training=False
        ).to(query.dtype)
        return weights @ repeated(value)

    same(joined(prefix, compute), expected(query, key, value, prefix, CAUSAL, scaled))


def test_a_prefix_joins_attention_with_batch_and_heads_on_one_axis():
    query, key, value, prefix = problem(HEADS)
    bias = random(BATCH * HEADS, 1, TOKENS)

    def compute():
        flat = [x.reshape(BATCH * HEADS, TOKENS, -1) for x in (query, key, value)]
        scores = torch.baddbmm(bias, flat[0], flat[1].mT, beta=0.5, alpha=SCALE)
        weights = (
            scores.view(BATCH, HEADS, TOKENS, TOKENS).softmax(dim=3).view(BATCH * HEADS, TOKENS, -1)
        )
        return torch.bmm(weights, flat[2]).view(BATCH, HEADS, TOKENS, -1)

    mask = 0.5 * bias.view(BATCH, HEADS, 1, TOKENS)
    same(joined(prefix, compute), expected(query, key, value, prefix, mask, scaled))


def test_a_prefix_joins_multi_query_attention_with_tokens_beside_heads():
    query, key, value, prefix = problem(groups=1)

    def compute():
        flat = query.transpose(1, 2).reshape(BATCH, TOKENS * HEADS, WIDTH)
        scores = (flat @ key[:, 0].mT).view(BATCH, TOKENS, HEADS, TOKENS) * SCALE
        weights = scores.softmax(-1).view(BATCH, TOKENS * HEADS, TOKENS)
        return (weights @ value[:, 0]).view(BATCH, TOKENS, HEADS, -1).transpose(1, 2)

    same(joined(prefix, compute), expected(query, key, value, prefix, None, scaled))


@pytest.mark.parametrize("groups", [1, GROUPS])
def test_a_prefix_joins_grouped_attention_on_five_axes(groups):
    query, key, value, prefix = problem(groups)

    def compute():
        grouped = query.view(BATCH, groups, HEADS // groups, TOKENS, WIDTH)
        weights = (grouped @ key.unsqueeze(2).mT * SCALE).softmax(-1)
        return (weights @ value.unsqueeze(2)).view(BATCH, HEADS, TOKENS, -1)

    same(joined(prefix, compute), expected(query, key, value, prefix, None, scaled))


@pytest.mark.parametrize(
    ("scores", "output", "layout"),
    [
        ("ibnd,jbnd->bnij", "bnij,jbnd->ibnd", (2, 0, 1, 3)),
        ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", (0, 2, 1, 3)),
        ("...qhd,...khd->...hqk", "...hqk,...khd->...qhd", (0, 2, 1, 3)),
    ],
)
def test_a_prefix_joins_attention_written_with_einsum(scores, output, layout):
    query, key, value, prefix = problem(HEADS)

    def compute():
        laid = [x.permute(layout) for x in (query, key, value)]
        weights = F.softmax(torch.einsum(scores, laid[0], laid[1]) * SCALE, dim=-1)
        found = torch.einsum(output, weights, laid[2])
        return found.permute(*(layout.index(axis) for axis in range(4)))

    same(joined(prefix, compute), expected(query, key, value, prefix, None, scaled))


def test_a_prefix_joins_attention_with_sinks_soft_caps_and_transposed_weights():
    query, key, value, prefix = problem()
    sinks = random(HEADS)

    def compute():
        scores = torch.tanh(query @ repeated(key).mT / 5.0) * 5.0
        scores = torch.cat(
            [scores, sinks.reshape(1, -1, 1, 1).expand(BATCH, -1, TOKENS, 1)], dim=-1
        )
        scores = scores - scores.max(dim=-1, keepdim=True).values
        weights = scores.softmax(-1)[..., :-1]
        return (repeated(value).mT @ weights.mT).transpose(-1, -2)

    keys, values = (
        repeated(x)[None].expand(BATCH, -1, -1, -1) for x in (prefix.keys, prefix.values)
    )
    scores = torch.tanh(query @ torch.cat([keys, repeated(key)], 2).mT / 5) * 5
    scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(BATCH, -1, TOKENS, 1)], -1)
    want = scores.softmax(-1)[..., :-1] @ torch.cat([values, repeated(value)], 2)
    same(joined(prefix, compute), want)


def test_the_prefix_is_scaled_and_normalised_like_the_keys():
    query, key, value, prefix = problem()

    def compute():
        keys = F.normalize(repeated(key), dim=-1) * 3.0
        return (query @ (keys.transpose(-1, -2) / torch.tensor(2.0))).softmax(-1) @ repeated(value)

    alike = Prefix(F.normalize(prefix.keys, dim=-1) * 1.5, prefix.values, prefix.heads)
    same(joined(prefix, compute), expected(query, F.normalize(key, dim=-1) * 1.5, value, alike))


@pytest.mark.parametrize("first", [True, False], ids=["content first", "positions first"])
def test_products_of_queries_with_positions_are_not_taken_for_scores(first):
    query, key, value, prefix = problem(HEADS)
    table = random(BATCH, HEADS, TOKENS, WIDTH)

    def compute():
        if first:
            scores = query @ key.mT + (query @ table.mT).roll(1, -1)
        else:
            positions = F.pad(query @ table.mT, (1, 0))[..., 1:].roll(1, -1)
            scores = query @ key.mT + positions
        return scores.softmax(-1) @ value

    same(
        joined(prefix, compute), expected(query, key, value, prefix, (query @ table.mT).roll(1, -1))
    )


def test_a_prefix_joins_attention_computed_in_parts_once():
    query, key, value, prefix = problem(HEADS)

    def compute():
        parts = torch.cat([query @ key[:, :, :2].mT, query @ key[:, :, 2:].mT], dim=-1)
        weights = parts.softmax(-1)
        return weights[..., :2] @ value[:, :, :2] + weights[..., 2:] @ value[:, :, 2:]

    same(joined(prefix, compute), expected(query, key, value, prefix))


def test_a_prefix_joins_a_softmax_that_is_written_out():
    query, key, value, prefix = problem()

    def compute():
        scores = query @ repeated(key).mT
        return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True)) @ repeated(value)

    same(joined(prefix, compute), expected(query, key, value, prefix))


@pytest.mark.parametrize("gauge", [0.0, 7.0])
def test_alibi_places_the_prefix_at_the_query_whatever_its_zero(gauge):
    query, key, value, prefix = problem()
    prefix = Prefix(prefix.keys, prefix.values, prefix.heads, alibi=True)
    bias = (torch.arange(TOKENS, dtype=torch.float64) - gauge) * torch.tensor(
        [0.5, 0.25, 0.1, 0.0]
    ).double()[:, None, None]
    distances = bias - bias.transpose(-1, -2)
    want = expected(query, key, value, prefix, distances.masked_fill(~CAUSAL, -1e9))

    def compute():
        scores = query @ repeated(key).mT + bias
        return scores.masked_fill(~CAUSAL, -1e9).softmax(-1) @ repeated(value)

    same(joined(prefix, compute), want)
    merged = bias.masked_fill(~CAUSAL, torch.finfo(torch.float64).min)[None]
    call = F.scaled_dot_product_attention
    same(
        joined(
            prefix, lambda: call(query, repeated(key), repeated(value), attn_mask=merged, scale=1.0)
        ),
        want,
    )


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_prefix_joins_torch_multi_head_attention(need_weights):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(
        HEADS * WIDTH, HEADS, batch_first=True, dtype=torch.float64
    ).eval()
    _, _, _, prefix = problem(HEADS, WIDTH)
    x = random(BATCH, TOKENS, HEADS * WIDTH)
    projected = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    query, key, value = (
        part.view(BATCH, TOKENS, HEADS, WIDTH).transpose(1, 2) for part in projected
    )
    want = module.out_proj(
        expected(query, key, value, prefix, None, scaled).transpose(1, 2).flatten(2)
    )
    same(joined(prefix, lambda: module(x, x, x, need_weights=need_weights)[0]), want)


def test_softmaxes_outside_attention_are_left_alone_and_a_missing_prefix_is_noticed():
    query, _, _, prefix = problem()
    with AttentionWithPrefix(prefix) as attention:
        assert torch.equal(query.softmax(-1), F.softmax(query, dim=-1))
    assert not attention.has_joined
    with AttentionWithPrefix(prefix) as attention:
        (query @ query.mT).softmax(-1).sum(-1)
    assert not attention.has_joined


def test_gradients_of_a_prefix_match_the_reference():
    query, key, value, prefix = problem()
    for parameter in (prefix.keys, prefix.values):
        parameter.requires_grad_()
    want = torch.autograd.grad(
        expected(query, key, value, prefix, CAUSAL, scaled).square().sum(),
        [prefix.keys, prefix.values],
    )
    ways = [
        lambda: F.scaled_dot_product_attention(
            query, repeated(key), repeated(value), is_causal=True
        ),
        lambda: (
            (query @ repeated(key).mT * SCALE).masked_fill(~CAUSAL, -1e9).softmax(-1)
            @ repeated(value)
        ),
    ]
    for way in ways:
        found = torch.autograd.grad(
            joined(prefix, way).square().sum(), [prefix.keys, prefix.values]
        )
        for a, b in zip(found, want, strict=True):
            same(a, b)
