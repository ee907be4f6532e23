from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch as th
from hand_made import REWARD, TABLE
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecMonitor

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.callbacks import ValidationCallback
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.envs.bandit import Bandit
from maw_gym.envs.vector_environment import GRPOVectorEnvironment

TASK: Any = SimpleNamespace()  # draws pictures, for TensorBoard alone


class Weights(BaseCallback):
    """The policy's first layer as each rollout begins, and after the last update."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[th.Tensor] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.seen.append(self.model.policy.action_net.weight.detach().clone())

    _on_training_end = _on_rollout_start


def environment() -> VecMonitor:
    return to_sb3(GRPOVectorEnvironment(8, 4, table=TABLE, observation="profile"))


def learned(average_from: int, rollouts: int = 4) -> tuple[GRPO, ValidationCallback, Weights]:
    """A training of rollouts of 32 samples, judged on the three queries that it sees."""
    settings = {"n_steps": 4, "learning_rate": 0.01, "seed": 0, "device": "cpu"}
    model, weights = GRPO("MlpPolicy", environment(), **settings), Weights()
    model.set_logger(Logger(None, [Mock(spec=KVWriter)]))
    model.logger.dump = lambda step=0: None  # what was recorded last stays
    callback = ValidationCallback(TASK, Bandit(TABLE, "profile"), 2, average_from)
    model.learn(32 * rollouts, CallbackList([callback, weights]))
    return model, callback, weights


def test_share_of_the_gap_of_a_rollout_by_hand() -> None:
    model, callback, _ = learned(64, rollouts=1)
    buffer, logged = model.rollout_buffer, model.logger.name_to_value
    # A query's entropy at depth 1 tells it from the others: .2, .3, 0
    queries = [[0.2, 0.3, 0.0].index(round(float(x), 1)) for x in buffer.observations[..., 1].flat]
    rewards = [REWARD[q][int(a)] for q, a in zip(queries, buffer.actions.flat, strict=True)]
    chance = sum((0.4825, 0.4575, 0.35)[query] for query in queries)
    oracle = sum((0.7, 0.7, 0.5)[query] for query in queries)
    closed = (sum(rewards) - chance) / (oracle - chance)
    assert logged["reward/gap_closed"] == pytest.approx(closed, abs=1e-6)
    assert logged["reward/regret"] == pytest.approx((oracle - sum(rewards)) / 32)
    assert callback.training == [(32, pytest.approx(closed, abs=1e-6))]


def test_weights_of_the_second_half_are_averaged_and_judged() -> None:
    model, callback, weights = learned(average_from=64)
    # As rollouts began at 0, 32, 64 and 96, and at the end, 128: the mean begins with that of 64
    assert len(weights.seen) == 5
    expected = (weights.seen[2] + weights.seen[3] + weights.seen[4]) / 3
    th.testing.assert_close(callback.average.module.action_net.weight, expected)
    assert [step for step, _ in callback.history] == [0, 64, 128]
    depths, _ = callback.average.module.predict(
        Bandit(TABLE, "profile").observations, deterministic=True
    )
    mean = np.mean([REWARD[query][depth] for query, depth in enumerate(depths)])
    assert callback.history[-1] == (128, pytest.approx(mean, abs=1e-6))
    logged, _, step = model.logger.output_formats[0].write.call_args.args
    assert step == 128
    assert logged["eval/reward"] == pytest.approx(mean, abs=1e-6)
    assert logged["eval/regret"] == pytest.approx(1.9 / 3 - mean, abs=1e-6)
    again = ValidationCallback(TASK, Bandit(TABLE, "profile"), 2, 64)
    fresh = GRPO("MlpPolicy", environment(), seed=1, device="cpu")
    again.set_state(fresh.policy, *callback.get_state())
    assert again.get_state()[1] == callback.get_state()[1]
    th.testing.assert_close(again.average.module.action_net.weight, expected)


def test_until_the_average_begins_the_policy_itself_is_judged() -> None:
    _, callback, weights = learned(average_from=1000)
    assert th.equal(callback.average.module.action_net.weight, weights.seen[-1])
