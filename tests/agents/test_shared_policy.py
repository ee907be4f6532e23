from pathlib import Path

import numpy as np
import pytest
import torch as th
from bandits import CONTEXTS, BanditEnv, GroupedBanditEnv
from gymnasium import spaces
from hand_made import TABLE
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents import GRPO, SharedPolicyNetwork, router_from_model
from agents.grpo.policies import ActionHead, MeanHead, SharedEncoder
from agents.sb3.vec_env import to_sb3
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.routers.depth_router import depth_features

BOX = spaces.Box(-1, 1, (4,), np.float32)


def numbers(*values: float) -> th.Tensor:
    return th.tensor([values])


def features_seen(encoder: SharedEncoder, observations: th.Tensor) -> th.Tensor:
    """What goes into the encoder's first layer."""
    seen: list[th.Tensor] = []
    handle = encoder.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder(observations)
    handle.remove()
    return seen[0]


def test_encoder_by_hand() -> None:
    encoder = SharedEncoder(
        BOX, actions=2, mean=[1, 1, 0, 0], scale=[1, 1, 0.5, 0.5], limit=3.0, widths=(7,)
    )
    # First numbers (2, 9) become 1 and, clipped, 3; second numbers (4, 6) become 2 and 3.
    seen = features_seen(encoder, numbers(2, 9, 4, 6))
    assert seen.tolist() == [[[1, 2, -1, -0.5, -2, -1], [3, 3, 1, 0.5, 0, 0]]]
    assert encoder(numbers(2, 9, 4, 6)).shape == (1, 2, 7)


def test_encoder_sees_what_an_exported_router_sees() -> None:
    given = th.rand(9, 4)
    seen = features_seen(SharedEncoder(BOX, actions=2), given)
    assert th.equal(seen, depth_features(given, 2))


def test_heads_by_hand() -> None:
    action, value = ActionHead(2, 3), MeanHead(2)
    with th.no_grad():
        action.weight.copy_(numbers(1, 10))
        action.bias.copy_(th.tensor([0.0, 0.5, -1.0]))
        value.weight.copy_(numbers(1, 2))
        value.bias.fill_(4)
    features = th.tensor([[[1.0, 2], [3, 4], [5, 6]]])
    assert action(features).tolist() == [[21, 43.5, 64]]
    assert value(features).tolist() == [[3 + 8 + 4]]


def test_numbers_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="of the 3; the observation has 4: take MlpPolicy"):
        SharedEncoder(BOX, actions=3)


def test_observations_without_numbers_of_every_action_are_refused() -> None:
    for space in (spaces.Discrete(4), spaces.Dict(x=BOX), spaces.MultiBinary(4)):
        with pytest.raises(ValueError, match=r"has numbers for each of the 2 actions.* not .*4"):
            SharedPolicyNetwork(space, spaces.Discrete(2), lambda _: 1e-3)
    # 64 numbers and 4 depths divide, but the environment says that they are of none
    env = to_sb3(GRPOVectorEnvironment(8, 4, table=TABLE, observation="attention"))
    with pytest.raises(
        ValueError, match=r"this environment's observation of \(64,\) has none: take"
    ):
        GRPO("SharedPolicy", env, device="cpu")
    env = to_sb3(GRPOVectorEnvironment(8, 4, table=TABLE, observation="profile"))
    assert GRPO("SharedPolicy", env, device="cpu").learn(8).num_timesteps == 1024


def test_actions_that_are_not_discrete_are_refused() -> None:
    with pytest.raises(ValueError, match="scores Discrete actions, got Box"):
        SharedPolicyNetwork(BOX, BOX, lambda _: 1e-3)


def model(kind: str) -> OnPolicyAlgorithm:
    env = to_sb3(GroupedBanditEnv(16, 4))
    if kind == "PPO":
        return PPO(SharedPolicyNetwork, env, n_steps=4, batch_size=64, seed=0, device="cpu")
    return GRPO("SharedPolicy", env, advantage="critic", n_steps=4, seed=0, device="cpu")


@pytest.mark.parametrize("kind", ["GRPO", "PPO"])
def test_actions_in_another_order_have_their_logits_in_that_order(kind: str) -> None:
    """Until an action's own bias has learned something."""
    policy = model(kind).policy
    given = th.rand(5, CONTEXTS)
    order = th.tensor([2, 0, 3, 1])
    logits = policy.get_distribution(given).distribution.logits
    th.testing.assert_close(
        policy.get_distribution(given[:, order]).distribution.logits, logits[:, order]
    )
    assert logits.std() > 0
    values = policy.predict_values(given)
    assert values.shape == (5, 1)
    th.testing.assert_close(policy.predict_values(given[:, order]), values)


@pytest.mark.parametrize("kind", ["GRPO", "PPO"])
def test_a_bandit_is_learned_and_every_parameter_moves(kind: str) -> None:
    learner = model(kind)
    before = {name: value.clone() for name, value in learner.policy.named_parameters()}
    assert before["action_net.bias"].shape == (CONTEXTS,)
    learner.learn(2048)
    moved = {
        name for name, value in learner.policy.named_parameters() if not value.equal(before[name])
    }
    assert moved == set(before)
    greedy, _ = learner.predict(np.eye(CONTEXTS, dtype=np.float32), deterministic=True)
    assert greedy.tolist() == [0, 1, 2, 3]


def test_saved_and_loaded(tmp_path: Path) -> None:
    learner = model("GRPO").learn(256)
    learner.save(tmp_path / "model.zip")
    again = GRPO.load(tmp_path / "model.zip", device="cpu")
    given = th.rand(6, CONTEXTS)
    expected = learner.policy.get_distribution(given).distribution.logits
    assert th.equal(again.policy.get_distribution(given).distribution.logits, expected)
    again.set_env(make_vec_env(BanditEnv, 16))
    assert again.learn(64).num_timesteps == 64


def test_exported_router_is_the_policy() -> None:
    learner = model("GRPO").learn(512)
    router = router_from_model(learner, ("profile",), {})
    given = np.random.default_rng(0).random((500, CONTEXTS), np.float32)
    expected = learner.policy.get_distribution(th.from_numpy(given)).distribution.logits
    found = router(th.from_numpy(given)).log_softmax(-1)
    th.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (router.shared, router.depths) == (True, CONTEXTS)
