import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from maw_gym.attention.reference import merge_heads, split_heads
from maw_gym.encoders.maw import (
    EncoderSettings,
    MAWEncoder,
    NonMAWEncoder,
    mean_content,
    temperatures,
)
from maw_gym.errors import InputError

SHAPE = EncoderSettings(hidden=8, heads=2, depths=3, vocabulary=20)
# Four texts over 20 tokens, one of them without a token and one with a single one.
IDS = torch.tensor([[3, 5, 5, 19], [7, 0, 0, 0], [0, 0, 0, 0], [2, 3, 4, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
DEPTHS = torch.tensor([2, 0, 1, 2])


@pytest.fixture
def table():
    """Token embeddings (20, 8)."""
    return torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def maw():
    """A MAW encoder of which no two weights are alike."""
    encoder = MAWEncoder(SHAPE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return encoder.eval()


def close(found, expected, atol=1e-6):
    return torch.allclose(found, expected, rtol=0, atol=atol)


def block(projection, depth, width):
    return projection.weight[depth * width : (depth + 1) * width]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden must be a whole number from 1 to 16777216, got 0"),
        ({"vocabulary": 10**12}, "vocabulary must be .* to 16777216, got 1000000000000"),
        ({"depths": -1}, "depths must be a whole number from 0 to 16777216, got -1"),
        ({"heads": 3}, "hidden width 8 is not divisible by 3 heads"),
        ({"depths": 0}, "a MAWEncoder needs at least 1 depth, got 0"),
        (None, "an encoder is made of EncoderSettings, not of 8"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        MAWEncoder(8 if changes is None else replace(SHAPE, **changes))
    default = {"hidden": 256, "heads": 8, "depths": 32, "vocabulary": 32_000}
    assert EncoderSettings().to_json() == default


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        (1, [1.0]),
        (2, [0.125, 8.0]),
        (3, [0.125, 1.0, 8.0]),
        (7, [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_untrained_depths_are_temperatures_and_noise(depths, expected):
    assert temperatures(depths).tolist() == pytest.approx(expected)
    torch.manual_seed(depths)  # whatever the global seed
    encoder = MAWEncoder(EncoderSettings(hidden=64, heads=2, depths=depths, vocabulary=1))
    noise = torch.Generator().manual_seed(0)
    for projection, sign in ((encoder.depth_query_proj, -0.6), (encoder.depth_key_proj, 1.0)):
        drawn = torch.randn(depths, 64, 64, generator=noise)
        for depth, temperature in enumerate(expected):
            scaled = torch.eye(64) * sign / math.sqrt(temperature)
            assert close(block(projection, depth, 64), scaled + drawn[depth] * 0.01)


def test_names_of_the_projections():
    assert {name: tuple(one.shape) for name, one in MAWEncoder(SHAPE).state_dict().items()} == {
        **{"norm.weight": (8,), "norm.bias": (8,), "token_weight": (20,)},
        **{f"{name}_proj.weight": (8, 8) for name in ("query", "key", "value", "out")},
        **{f"depth_{name}_proj.weight": (24, 8) for name in ("query", "key")},
    }


def test_two_tokens_by_hand():
    # LayerNorm makes [1, -1] of [3, 1] and [-1, 1] of [0, 2]. Scores are -.6 * 2 / sqrt(2) of a
    # token with itself and +.6 * 2 / sqrt(2) with the other, so the weights are
    # 1 / (1 + exp(1.697056)) = .15485 and .84515. V is LayerNorm's output: token 0 attends to
    # .15485 [1, -1] + .84515 [-1, 1] = [-.6903, .6903].
    encoder = NonMAWEncoder(EncoderSettings(hidden=2, heads=1, depths=0, vocabulary=2))
    hidden = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
    mask = torch.tensor([[True, True]])
    expected = torch.tensor([[[2.3097, 1.6903], [0.6903, 1.3097]]])
    assert close(encoder(hidden, mask), expected, atol=1e-4)
    # Pooling weights 3/4 and 1/4: [1.90485, 1.59515], of length 2.48454.
    with torch.no_grad():
        encoder.token_weight.copy_(torch.tensor([math.log(3), 0.0]))
    ids = torch.tensor([[0, 1]])
    assert close(encoder.pooling(ids, mask), torch.tensor([[0.75, 0.25]]))
    expected = torch.tensor([[0.76668, 0.64203]])
    assert close(encoder.embed(ids, hidden, mask), expected, atol=1e-4)


@pytest.mark.parametrize("depth", [None, DEPTHS], ids=["standard", "depths"])
def test_an_embedding_is_the_pooled_output(maw, table, depth):
    hidden = table[IDS]
    pooling = maw.pooling(IDS, MASK)
    assert close(pooling.sum(-1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert pooling[~MASK].tolist() == [0.0] * 8
    pooled = (pooling[:, None] @ maw(hidden, MASK, depth)).squeeze(1)
    embedded = maw.embed(IDS, hidden, MASK, depth=depth)
    assert close(embedded, normalize(pooled, dim=-1))
    assert close(embedded.norm(dim=-1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert embedded[2].tolist() == [0.0] * 8
    # A token alone attends to itself.
    alone = table[7] + maw.out_proj(maw.value_proj(maw.norm(table[7])))
    assert close(embedded[1], normalize(alone, dim=0))
    # Each token projected once, not each occurrence.
    tokens, place = IDS.unique(return_inverse=True)
    assert close(maw.embed(IDS, table[tokens], MASK, place, depth), embedded)


def test_a_depth_is_its_slice_of_the_5d_tensor_and_its_column_block(maw, table):
    hidden = table[IDS]
    weights = maw.depth_attention(hidden, MASK)
    assert weights.shape == (4, 2, 4, 4, 3)
    x = maw.norm(hidden)
    value = split_heads(maw.value_proj(x), 2)
    for depth in range(3):
        query, key = (
            split_heads(x @ block(projection, depth, 8).T, 2)
            for projection in (maw.depth_query_proj, maw.depth_key_proj)
        )
        expected = (query @ key.transpose(-1, -2) / 2).softmax(-1)  # the first text has no padding
        assert close(weights[0, ..., depth], expected[0])
        output = hidden + maw.out_proj(merge_heads(weights[..., depth] @ value))
        found = maw(hidden, MASK, torch.full((4,), depth))
        assert close(found[MASK], output[MASK], atol=1e-5)
        # And beside texts through other depths.
        for row in (depth == DEPTHS).nonzero()[:, 0].tolist():
            mixed = maw(hidden, MASK, DEPTHS)[row]
            assert close(mixed[MASK[row]], output[row][MASK[row]], atol=1e-5)


def test_only_the_path_chosen_is_trained_and_an_empty_text_breaks_nothing(maw, table):
    direction = torch.linspace(0, 1, 8)
    (
        maw.embed(IDS, table[IDS], MASK, depth=torch.tensor([0, 2, 1, 2])) @ direction
    ).sum().backward()
    for projection in (maw.depth_query_proj, maw.depth_key_proj):
        sizes = projection.weight.grad.view(3, -1).abs().sum(1)
        assert sizes.gt(0).tolist() == [True, False, True]  # 1 is that of the text without a token
    assert maw.query_proj.weight.grad is None
    maw.zero_grad(set_to_none=True)
    (maw.embed(IDS, table[IDS], MASK) @ direction).sum().backward()
    assert maw.depth_key_proj.weight.grad is None
    assert maw.query_proj.weight.grad.abs().sum() > 0
    for parameter in maw.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_content():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    mask = torch.tensor([[True, True, False], [False] * 3])
    assert close(mean_content(hidden, mask), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
