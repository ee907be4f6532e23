"""What holds for every input: Hypothesis looks for one that it does not hold for."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from hand_made import random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from maw_gym.attention.reference import pooled_state, pooling_matrix
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder
from maw_gym.envs.bandit import RewardSpec
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError

quick = settings(max_examples=25, deadline=None, derandomize=True)

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)
UNIT = st.floats(0, 1)
# Positive as a whole: each at least as large as the smallest normal number, one of them above 0.
WEIGHTS = st.tuples(*[st.floats(0, 1e6)] * 3).filter(lambda three: max(three) >= 1e-6)
SHAPE = EncoderSettings(hidden=16, heads=2, depths=3, vocabulary=50)


def masks(lengths: list[int], padding: int = 0) -> torch.Tensor:
    """(B, S) bool: texts of these lengths, real tokens first."""
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


def attention(lengths: list[int], heads: int, scale: float, seed: int) -> np.ndarray:
    """Rows of softmax(scale * noise): spread evenly where the scale is 0, one-hot where it is
    large."""
    tokens = max(lengths)
    scores = np.random.default_rng(seed).normal(size=(len(lengths), heads, tokens, tokens)) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


# --- encoders --------------------------------------------------------------------------------


@quick
@given(LENGTHS, st.integers(1, 8), st.floats(0, 50), SEEDS, st.booleans())
def test_padding_changes_no_embedding(lengths, padding, scale, seed, routed):
    """Whatever stands in the padding; a text has a unit vector, one without tokens the zero."""
    generator = torch.Generator().manual_seed(seed)
    encoder = MAWEncoder(SHAPE).eval()
    mask, wide = masks(lengths), masks(lengths, padding)
    batch, size = wide.shape
    ids = torch.randint(50, (batch, size), generator=generator)
    hidden = torch.randn(batch, size, 16, generator=generator) * scale
    with torch.no_grad():
        encoder.token_weight.copy_(torch.randn(50, generator=generator))
        depth = torch.randint(3, (batch,), generator=generator) if routed else None
        cut = mask.shape[1]
        narrow = encoder.embed(ids[:, :cut], hidden[:, :cut], mask, depth=depth)
        padded = encoder.embed(ids, hidden, wide, depth=depth)
        other = hidden.masked_fill(~wide[..., None], 1e3)
        again = encoder.embed(ids, other, wide, depth=depth)
    torch.testing.assert_close(padded, narrow, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, padded, atol=1e-5, rtol=0)
    assert padded.isfinite().all()
    some = torch.tensor(lengths) > 0
    if scale > 1e-3:
        torch.testing.assert_close(padded.norm(dim=-1), some.to(torch.float32), atol=1e-5, rtol=0)
    assert (padded[~some] == 0).all()


@quick
@given(LENGTHS, st.integers(1, 8), st.floats(1e-3, 50), SEEDS)
def test_padding_changes_no_depth(lengths, padding, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    encoder = MAWEncoder(SHAPE).eval()
    mask, wide = masks(lengths), masks(lengths, padding)
    batch, size = wide.shape
    ids = torch.randint(50, (batch, size), generator=generator)
    hidden = torch.randn(batch, size, 16, generator=generator) * scale
    cut = mask.shape[1]
    with torch.no_grad():
        narrow = encoder.depth_statistics(ids[:, :cut], hidden[:, :cut], mask, exact=True)
        padded = encoder.depth_statistics(ids, hidden, wide, exact=True)
    for name, few, many in zip(narrow._fields, narrow, padded, strict=True):
        assert many.isfinite().all(), name
        torch.testing.assert_close(many, few, atol=1e-5, rtol=0)
    for term in (padded.entropy, padded.focus):
        assert ((term >= 0) & (term <= 1)).all()
    empty = torch.tensor(lengths) == 0
    assert (padded.embeddings[empty] == 0).all()
    assert (padded.entropy[torch.tensor(lengths) <= 1] == 0).all()
    assert (padded.focus[torch.tensor(lengths) == 1] == 1).all()


# --- pooling ---------------------------------------------------------------------------------


@quick
@given(LENGTHS, st.integers(0, 8), st.integers(1, 3), st.floats(0, 20), SEEDS)
def test_the_state_is_adaptive_pooling(lengths, padding, heads, scale, seed):
    size = max(lengths) + padding
    mask = masks(lengths, padding)
    full = torch.rand(
        len(lengths), heads, size, size, generator=torch.Generator().manual_seed(seed)
    )
    real = mask[:, None, :, None] & mask[:, None, None]
    state = pooled_state(full.masked_fill(~real, 0) * scale, mask)
    for row, length in enumerate(lengths):
        if length == 0:
            assert (state[row] == 0).all()
            continue
        cells = torch.nn.functional.adaptive_avg_pool2d(
            full[row, :, :length, :length] * scale, (8, 8)
        )
        expected = torch.nn.functional.normalize(cells.flatten(), dim=-1)
        torch.testing.assert_close(state[row], expected, atol=1e-5, rtol=0)


@quick
@given(LENGTHS, st.integers(0, 8))
def test_cells_are_means_of_real_tokens(lengths, padding):
    mask = masks(lengths, padding)
    pooling = pooling_matrix(mask, torch.float64)
    assert (pooling >= 0).all()
    assert (pooling.masked_select(~mask[:, None].expand_as(pooling)) == 0).all()
    for row, length in enumerate(lengths):
        sums = pooling[row].sum(-1).tolist()
        assert sums == pytest.approx([1.0 if length else 0.0] * 8, abs=1e-12)


# --- rewards ---------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(UNIT, UNIT, UNIT), min_size=1, max_size=6), WEIGHTS)
def test_a_blend_stays_within_its_terms(terms, weights):
    """Between the smallest and the largest term, times the sum of the weights."""
    columns = np.array(terms).T
    total = sum(weights)
    reward = RewardSpec(weights).blend(*columns)
    assert (reward >= columns.min(axis=0) * total * (1 - 1e-12)).all()
    assert (reward <= columns.max(axis=0) * total * (1 + 1e-12)).all()
    default = RewardSpec().blend(*columns)
    assert ((default >= 0) & (default <= 1 + 1e-12)).all()


# --- environments ----------------------------------------------------------------------------

NO_DEPTH = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=4),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
)


@quick
@given(SEEDS, st.lists(st.one_of(st.integers(0, 3), NO_DEPTH), max_size=30), WEIGHTS)
def test_any_actions_in_the_environment(seed, actions, weights):
    table = random_table(5, 4)
    reward = RewardSpec(weights).of(table)
    env = GRPOEnvironment(table=table, reward_weights=weights)
    with pytest.raises(ResetNeeded):
        env.step(0)
    _, info = env.reset(seed=seed)
    for action in actions:
        row = info["query"]
        if type(action) is int and 0 <= action < 4:
            observation, paid, *_, told = env.step(action)
            assert paid == reward[row, action]
            assert told["query"] == info["query"]
            assert told["regret"] == pytest.approx(reward[row].max() - paid, rel=1e-6, abs=1e-6)
            assert np.array_equal(observation, table.block("attention")[row])
            with pytest.raises(ResetNeeded):
                env.step(action)
            _, info = env.reset()
        else:
            with pytest.raises(InputError, match=r"^action must be an integer from 0 to 3; got "):
                env.step(action)


@quick
@given(
    SEEDS,
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 3), min_size=4, max_size=4),
            st.lists(st.integers(-1, 4), min_size=3, max_size=5),
        ),
        max_size=20,
    ),
)
def test_any_actions_in_the_vector_environment(seed, batches):
    """Four sub-environments; batches of other sizes and depths out of range are refused whole."""
    table = random_table(5, 4)
    reward = RewardSpec().of(table)
    env = GRPOVectorEnvironment(num_envs=4, group_size=2, table=table)
    _, infos = env.reset(seed=seed)
    for batch in batches:
        if len(batch) == 4 and all(0 <= action < 4 for action in batch):
            rows = infos["query"].tolist()
            _, paid, _, _, infos = env.step(np.array(batch))
            assert paid.tolist() == reward[rows, batch].tolist()
        else:
            before = env.get_state()
            with pytest.raises(InputError, match=r"^actions must be "):
                env.step(np.array(batch))
            assert env.get_state() == before
