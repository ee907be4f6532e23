"""What holds for every input: Hypothesis looks for one that it does not hold for."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from hand_made import random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from maw_gym.encoders.maw import EncoderSettings, MAWEncoder
from maw_gym.envs.bandit import RewardSpec
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError

quick = settings(max_examples=25, deadline=None, derandomize=True)

LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)
SHAPE = EncoderSettings(hidden=16, heads=2, depths=3, vocabulary=50)


def masks(lengths: list[int], padding: int = 0) -> torch.Tensor:
    """(B, S) bool: texts of these lengths, real tokens first."""
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


@quick
@given(LENGTHS, st.integers(1, 8), st.floats(1e-3, 50), SEEDS)
def test_padding_changes_nothing(lengths, padding, scale, seed):
    """Whatever stands in it; a text has a unit vector, one without tokens the zero vector."""
    generator = torch.Generator().manual_seed(seed)
    encoder = MAWEncoder(SHAPE).eval()
    mask, wide = masks(lengths), masks(lengths, padding)
    (batch, size), cut, count = wide.shape, mask.shape[1], torch.tensor(lengths)
    ids = torch.randint(50, (batch, size), generator=generator)
    hidden = torch.randn(batch, size, 16, generator=generator) * scale
    other = hidden.masked_fill(~wide[..., None], 1e3)
    with torch.no_grad():
        encoder.token_weight.copy_(torch.randn(50, generator=generator))
        for depth in (None, torch.randint(3, (batch,), generator=generator)):
            narrow = encoder.embed(ids[:, :cut], hidden[:, :cut], mask, depth=depth)
            for given_hidden in (hidden, other):
                padded = encoder.embed(ids, given_hidden, wide, depth=depth)
                torch.testing.assert_close(padded, narrow, atol=1e-5, rtol=0)
            torch.testing.assert_close(padded.norm(dim=-1), (count > 0).float(), atol=1e-5, rtol=0)
        few = encoder.depth_statistics(ids[:, :cut], hidden[:, :cut], mask, exact=True)
        many = encoder.depth_statistics(ids, hidden, wide, exact=True)
    for one, other in zip(few, many, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    assert all(((term >= 0) & (term <= 1)).all() for term in (many.entropy, many.focus))
    assert (many.embeddings[count == 0] == 0).all()
    assert (many.entropy[count <= 1] == 0).all()
    assert (many.focus[count == 1] == 1).all()


WEIGHTS = st.tuples(*[st.floats(0, 1e6)] * 3).filter(lambda three: max(three) >= 1e-6)
NO_DEPTH = st.one_of(
    *(st.integers(max_value=-1), st.integers(min_value=4), st.floats(), st.booleans(), st.none()),
    *(st.text(max_size=3), st.lists(st.integers(0, 3), max_size=2)),
    st.sampled_from([np.bool_(0), np.float32(1), np.array([1]), np.array(1.0), np.ones((40, 40))]),
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
            assert told["regret"] == pytest.approx(reward[row].max() - paid, rel=1e-6, abs=1e-6)
            assert np.array_equal(observation, table.block("attention")[row])
            with pytest.raises(ResetNeeded):
                env.step(action)
            _, info = env.reset()
        else:
            message = r"^action must be a whole number from 0 to 3, got .{,100}$"
            with pytest.raises(InputError, match=message):
                env.step(action)


WRONG = r"^actions must be (4 .*0 to 3; got .* type \w+|.* 0 to 3; sub-environment \d got -?\d+)$"
NO_DEPTHS = st.one_of(
    st.lists(st.integers(-1, 4), max_size=5).filter(lambda of: len(of) != 4 or {-1, 4} & {*of}),
    st.sampled_from([None, 2, [[0]] * 4, [1.0] * 4, [True] * 4, np.uint64([0, 0, 0, 2**64 - 1])]),
)


@quick
@given(NO_DEPTHS)
def test_wrong_actions_leave_the_vector_environment_alone(actions):
    env = GRPOVectorEnvironment(num_envs=4, group_size=2, table=random_table(5, 4))
    with pytest.raises(ResetNeeded):
        env.step([0] * 4)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(InputError, match=WRONG):
        env.step(actions)
    assert env.get_state() == before
