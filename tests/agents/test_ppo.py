from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bandits import CONTEXTS, GroupedBanditEnv
from hand_made import random_table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents.export import router_from_model
from agents.grpo import GRPO, GRPOPolicyNetwork
from agents.networks import standardisation
from agents.ppo import make_ppo
from agents.sb3.vec_env import to_sb3
from agents.settings import PPOSettings
from maw_gym.envs.bandit import RewardSpec
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError


def bandit_ppo(**kwargs: Any) -> PPO:
    return make_ppo(to_sb3(GroupedBanditEnv(64, 8)), seed=0, device="cpu", **kwargs)


def test_learns_the_bandit() -> None:
    model = bandit_ppo().learn(8192)
    best, _ = model.predict(np.eye(CONTEXTS, dtype=np.float32), deterministic=True)
    assert best.tolist() == [0, 1, 2, 3]


def test_same_network_as_grpo() -> None:
    ppo = bandit_ppo()
    grpo = GRPO(GRPOPolicyNetwork, to_sb3(GroupedBanditEnv(64, 8)), seed=0, device="cpu")
    assert type(ppo.policy) is GRPOPolicyNetwork is type(grpo.policy)
    shapes = [{n: p.shape for n, p in m.policy.named_parameters()} for m in (ppo, grpo)]
    assert shapes[0] == shapes[1]


class Rollout(BaseCallback):
    """Keeps the first rollout's numbers."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.advantages = buffer.advantages.copy()
        self.expected = buffer.rewards - buffer.values
        self.returns, self.rewards = buffer.returns.copy(), buffer.rewards.copy()


def test_every_advantage_is_reward_minus_value() -> None:
    rollout = Rollout()
    bandit_ppo().learn(512, rollout)
    np.testing.assert_allclose(rollout.advantages, rollout.expected, atol=1e-6)
    np.testing.assert_allclose(rollout.returns, rollout.rewards, atol=1e-6)


def test_gamma_and_gae_lambda_are_inert() -> None:
    """As the module says: other values give the same weights to the last bit."""
    states = []
    for gamma, gae_lambda in ((0.0, 1.0), (0.99, 0.95)):
        model = bandit_ppo()
        assert (model.rollout_buffer.gamma, model.rollout_buffer.gae_lambda) == (0.0, 1.0)
        model.rollout_buffer.gamma, model.rollout_buffer.gae_lambda = gamma, gae_lambda
        states.append(model.learn(1024).policy.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_settings_reach_ppo() -> None:
    told = PPOSettings(
        learning_rate=2e-4,
        n_steps=4,
        batch_size=32,
        n_epochs=3,
        clip_range=0.1,
        normalize_advantage=False,
        ent_coef=0.02,
        vf_coef=0.25,
        max_grad_norm=0.75,
        target_kl=0.05,
    )
    model: Any = bandit_ppo(settings=told)
    assert model.lr_schedule(1.0) == 2e-4
    assert (model.n_steps, model.batch_size, model.n_epochs) == (4, 32, 3)
    assert model.clip_range(1.0) == 0.1
    assert model.normalize_advantage is False
    assert (model.ent_coef, model.vf_coef) == (0.02, 0.25)
    assert (model.max_grad_norm, model.target_kl) == (0.75, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"clip_range": 0.0}, "clip_range must be above 0, got 0.0"),
        ({"ent_coef": -1.0}, "ent_coef must be at least 0, got -1.0"),
        ({"target_kl": 0.0}, "target_kl must be above 0, got 0.0"),
        ({"batch_size": 100}, "batch_size 100 does not divide the 512 samples of a rollout"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bandit_ppo(settings=replace(PPOSettings(), **change))


def test_a_small_rollout_is_one_batch() -> None:
    env = to_sb3(GroupedBanditEnv(8, 4))
    model = make_ppo(env, PPOSettings(n_steps=2), seed=0, device="cpu")
    assert model.batch_size == 16
    model.learn(32)


def test_a_rollout_of_one_sample_is_refused() -> None:
    env = to_sb3(GroupedBanditEnv(1, 1))
    with pytest.raises(InputError, match="needs 2 samples"):
        make_ppo(env, PPOSettings(n_steps=1), device="cpu")


def test_router_has_the_mean_reward_that_sb3_measures() -> None:
    """evaluate_policy over the queries in order equals looking depths up in the table."""
    table = random_table(40, 6)
    vector = GRPOVectorEnvironment(num_envs=16, group_size=8, table=table)
    mean, scale = standardisation(table.block("attention"))
    standard = {"features_extractor_kwargs": {"mean": mean.tolist(), "scale": scale.tolist()}}
    settings = PPOSettings(n_steps=4, batch_size=64)
    model = make_ppo(to_sb3(vector), settings, policy_kwargs=standard, seed=1, device="cpu")
    model.learn(4096)
    router = router_from_model(model, ("attention",), {})
    depths, _ = router.predict(table.observation(("attention",)))
    reward = RewardSpec().of(table)[np.arange(40), depths]
    env = Monitor(GRPOEnvironment(table=table, query_order="sequential"))
    measured, _ = evaluate_policy(model, env, n_eval_episodes=40, deterministic=True)
    assert measured == pytest.approx(float(reward.mean(dtype=np.float64)), abs=1e-6)
    assert len(set(depths.tolist())) > 1
