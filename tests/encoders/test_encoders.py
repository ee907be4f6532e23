import math

import pytest
import torch
from torch import nn

from maw_gym.attention.reference import merge_heads, split_heads
from maw_gym.encoders.embedder import idf_token_weights
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


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": 0}, "hidden must be a whole number of at least 1, got 0"),
        ({"heads": -1}, "heads must be a whole number of at least 1, got -1"),
        ({"vocabulary": 0}, "vocabulary must be a whole number of at least 1, got 0"),
        ({"depths": -1}, "depths must be a whole number of at least 0, got -1"),
        ({"hidden": 8.0}, "hidden must be a whole number of at least 1, got 8.0"),
        ({"heads": True}, "heads must be a whole number of at least 1, got True"),
        ({"depths": "3"}, "depths must be a whole number of at least 0, got '3'"),
        ({"heads": 3}, "hidden width 8 is not divisible by 3 heads"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(InputError) as caught:
        EncoderSettings(**(SHAPE.to_json() | wrong))
    assert str(caught.value) == message


def test_settings_without_depths_are_not_for_maw():
    settings = EncoderSettings(**(SHAPE.to_json() | {"depths": 0}))
    with pytest.raises(InputError, match="at least 1 depth"):
        MAWEncoder(settings)
    NonMAWEncoder(settings)


def test_settings_as_json():
    assert EncoderSettings().to_json() == {
        "hidden": 256,
        "heads": 8,
        "depths": 32,
        "vocabulary": 32_000,
    }


# --- untrained -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        (1, [1.0]),
        (2, [0.125, 8.0]),
        (3, [0.125, 1.0, 8.0]),
        (4, [0.125, 0.5, 2.0, 8.0]),
        (7, [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_untrained_depths_are_temperatures_and_noise(depths, expected):
    assert temperatures(depths).tolist() == pytest.approx(expected)
    settings = EncoderSettings(hidden=64, heads=2, depths=depths, vocabulary=1)
    encoder = MAWEncoder(settings)
    noise = torch.Generator().manual_seed(0)
    for projection, sign in ((encoder.depth_query_proj, -0.6), (encoder.depth_key_proj, 1.0)):
        drawn = torch.randn(depths, 64, 64, generator=noise)
        for depth, temperature in enumerate(expected):
            scaled = torch.eye(64) * sign / math.sqrt(temperature)
            assert close(block(projection, depth, 64), scaled + drawn[depth] * 0.01)


def test_scores_of_an_untrained_depth_are_the_standard_ones_over_the_temperature(table):
    encoder = MAWEncoder(SHAPE)
    x = encoder.norm(table)
    standard = encoder.query_proj(x) @ encoder.key_proj(x).T
    for depth, temperature in enumerate([0.125, 1.0, 8.0]):
        query, key = (
            x @ block(projection, depth, 8).T
            for projection in (encoder.depth_query_proj, encoder.depth_key_proj)
        )
        # 64 noises of .01 in a sum of 8 x 8 products of numbers of size 1
        assert close(query @ key.T, standard / temperature, atol=1.0)
        correlation = torch.corrcoef(torch.stack([(query @ key.T).flatten(), standard.flatten()]))
        assert correlation[0, 1] > 0.98


def test_untrained_encoders_are_equal_whatever_the_global_seed():
    torch.manual_seed(1)
    first = MAWEncoder(SHAPE).state_dict()
    torch.manual_seed(2)
    second = MAWEncoder(SHAPE).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_names_of_the_projections():
    assert set(MAWEncoder(SHAPE).state_dict()) == {
        *("norm.weight", "norm.bias", "token_weight"),
        *(f"{name}_proj.weight" for name in ("query", "key", "value", "out")),
        *("depth_query_proj.weight", "depth_key_proj.weight"),
    }
    assert MAWEncoder(SHAPE).depth_query_proj.weight.shape == (24, 8)


# --- the standard path -----------------------------------------------------------------------


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


def test_one_token_attends_to_itself(maw, table):
    hidden = table[IDS[1:2, :1]]
    mask = torch.ones(1, 1, dtype=torch.bool)
    expected = hidden + maw.out_proj(maw.value_proj(maw.norm(hidden)))
    for depth in (None, *torch.arange(3)[:, None]):
        assert close(maw(hidden, mask, depth), expected, atol=1e-5)
        embedded = maw.embed(IDS[1:2, :1], hidden, mask, depth=depth)
        assert close(embedded, nn.functional.normalize(expected[:, 0], dim=-1))


def test_pooling_weights_sum_to_one_over_real_tokens(maw):
    pooling = maw.pooling(IDS, MASK)
    assert close(pooling.sum(-1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert pooling[~MASK].tolist() == [0.0] * 8
    assert pooling[0, 1] == pooling[0, 2]  # equal tokens


# --- agreement of the paths ------------------------------------------------------------------

CHOICES = [None, DEPTHS]


@pytest.mark.parametrize("depth", CHOICES, ids=["standard", "depths"])
def test_an_embedding_is_the_pooled_output(maw, table, depth):
    hidden = table[IDS]
    pooled = (maw.pooling(IDS, MASK)[:, None] @ maw(hidden, MASK, depth)).squeeze(1)
    embedded = maw.embed(IDS, hidden, MASK, depth=depth)
    assert close(embedded, nn.functional.normalize(pooled, dim=-1))
    assert close(embedded.norm(dim=-1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert embedded[2].tolist() == [0.0] * 8


@pytest.mark.parametrize("depth", CHOICES, ids=["standard", "depths"])
def test_projecting_each_token_once_gives_the_same(maw, table, depth):
    tokens, place = IDS.unique(return_inverse=True)
    found = maw.embed(IDS, table[tokens], MASK, place, depth)
    assert close(found, maw.embed(IDS, table[IDS], MASK, depth=depth))


def test_a_non_maw_encoder_agrees_with_the_standard_path(maw, table):
    plain = NonMAWEncoder(EncoderSettings(hidden=8, heads=2, depths=0, vocabulary=20)).eval()
    known = plain.state_dict()
    plain.load_state_dict({name: maw.state_dict()[name] for name in known})
    assert close(plain.embed(IDS, table[IDS], MASK), maw.embed(IDS, table[IDS], MASK))


@pytest.mark.parametrize("depth", CHOICES, ids=["standard", "depths"])
def test_padding_and_neighbours_change_nothing(maw, table, depth):
    generator = torch.Generator().manual_seed(2)
    hidden = table[IDS].masked_fill(~MASK[..., None], 0)
    garbage = torch.randn(hidden.shape, generator=generator) * ~MASK[..., None] * 100
    expected = maw.embed(IDS, hidden, MASK, depth=depth)
    assert close(maw.embed(IDS, hidden + garbage, MASK, depth=depth), expected)
    for row, length in enumerate([4, 1, 0, 3]):
        size = max(length, 1)
        alone = maw.embed(
            IDS[row : row + 1, :size],
            hidden[row : row + 1, :size],
            MASK[row : row + 1, :size],
            depth=None if depth is None else depth[row : row + 1],
        )
        assert close(alone[0], expected[row])


def test_one_depth_each_equals_one_at_a_time(maw, table):
    hidden = table[IDS]
    together = maw(hidden, MASK, DEPTHS)
    for row, depth in enumerate(DEPTHS.tolist()):
        everyone = maw(hidden, MASK, torch.full((4,), depth))
        assert close(together[row][MASK[row]], everyone[row][MASK[row]], atol=1e-5)


def test_a_depth_is_its_slice_of_the_5d_tensor(maw, table):
    hidden = table[IDS]
    weights = maw.depth_attention(hidden, MASK)
    assert weights.shape == (4, 2, 4, 4, 3)
    value = split_heads(maw.value_proj(maw.norm(hidden)), 2)
    for depth in range(3):
        expected = hidden + maw.out_proj(merge_heads(weights[..., depth] @ value))
        found = maw(hidden, MASK, torch.full((4,), depth))
        assert close(found[MASK], expected[MASK], atol=1e-5)


def test_column_block_d_of_a_projection_is_depth_d(maw, table):
    x = maw.norm(table[IDS[:1]])
    for depth in range(3):
        query, key = (
            split_heads(projection(x)[..., depth * 8 : (depth + 1) * 8], 2)
            for projection in (maw.depth_query_proj, maw.depth_key_proj)
        )
        expected = (query @ key.transpose(-1, -2) / 2).softmax(-1)
        found = maw.depth_attention(table[IDS[:1]], MASK[:1])[..., depth]
        assert close(found, expected)


@pytest.mark.parametrize("gradients", [False, True])
def test_statistics_hold_the_embedding_of_every_depth(maw, table, gradients):
    hidden = table[IDS]
    with torch.set_grad_enabled(gradients):
        statistics = maw.depth_statistics(IDS, hidden, MASK)
    assert statistics.state.shape == (4, 128)
    assert statistics.entropy.shape == statistics.focus.shape == (4, 3)
    for depth in range(3):
        expected = maw.embed(IDS, hidden, MASK, depth=torch.full((4,), depth))
        assert close(statistics.embeddings[:, depth], expected)


# --- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", CHOICES, ids=["standard", "depths"])
def test_gradients_are_finite_with_an_empty_text(maw, table, depth):
    maw.embed(IDS, table[IDS], MASK, depth=depth).sum().backward()
    for parameter in maw.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_only_the_depths_chosen_are_trained(maw, table):
    embedded = maw.embed(IDS, table[IDS], MASK, depth=torch.tensor([0, 2, 1, 2]))
    (embedded @ torch.linspace(0, 1, 8)).sum().backward()
    for projection in (maw.depth_query_proj, maw.depth_key_proj):
        size = [projection.weight.grad[d * 8 : (d + 1) * 8].abs().sum().item() for d in range(3)]
        assert size[0] > 0
        assert size[1] == 0  # the depth of the text without a token
        assert size[2] > 0
    assert maw.query_proj.weight.grad is None


# --- depths in order -------------------------------------------------------------------------


def test_depths_from_the_standard_attention(maw, table):
    maw.depths_from_standard(torch.tensor([1.0, 4.0, 0.25]))
    x = maw.norm(table)
    standard = maw.query_proj(x) @ maw.key_proj(x).T
    for depth, temperature in enumerate([1.0, 4.0, 0.25]):
        query, key = (
            x @ block(projection, depth, 8).T
            for projection in (maw.depth_query_proj, maw.depth_key_proj)
        )
        assert close(query @ key.T, standard / temperature, atol=1e-4)
    expected = maw.embed(IDS, table[IDS], MASK)
    assert close(maw.embed(IDS, table[IDS], MASK, depth=torch.zeros(4, dtype=torch.long)), expected)


# --- token weights and content ---------------------------------------------------------------


def test_token_weights_from_idf():
    # Three documents, two with a token twice: tokens in 3, 1 and 0 documents.
    found = idf_token_weights([[0, 1, 1], [0], [0, 0]], 3)
    expected = [
        math.log(0.5),  # log(4 / 3.5) = .134 is cut
        math.log(math.log(4 / 1.5)),
        math.log(math.log(8)),
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.tolist() == pytest.approx([-0.693147, -0.019357, 0.732100], abs=1e-5)


def test_token_weights_with_empty_documents_and_without_any():
    # log(3 / 1.5) = .693147, log(3 / .5) = 1.791759
    assert idf_token_weights([[], [1]], 2).tolist() == pytest.approx(
        [0.583198, -0.366513], abs=1e-5
    )
    assert idf_token_weights([], 2).tolist() == pytest.approx([-0.366513] * 2, abs=1e-5)


def test_content():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    mask = torch.tensor([[True, True, False], [False] * 3])
    assert close(mean_content(hidden, mask), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
