"""What learners are compared on: bandits whose every reward is known, and episodes of Gymnasium.

Notation: N contexts, O observed numbers, A actions, E sub-environments.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from maw_gym.errors import InputError

GENERATOR: Final = 0  # seed of the synthetic problems, which are the same in every run
CLASSES: Final = {
    "digits": "load_digits",
    "breast cancer": "load_breast_cancer",
    "wine": "load_wine",
}
SYNTHETIC: Final = ("one-hot", "linear", "dense", "offset", "ring")
PROBLEMS: Final = (*CLASSES, *SYNTHETIC)


class Episodes(NamedTuple):
    """An environment of episodes, and what rl_zoo3's hyperparams/*.yml say of it.

    Attributes:
        timesteps: of a training.
        ppo: arguments of PPO; beside them `n_envs`, and `normalize` of observations and rewards.
            Schedules are texts, `lin_` and where they begin.
        a2c: the same of A2C.
        grpo: what GRPO has here that is not its default.
        kwargs: of gymnasium.make.
    """

    timesteps: int
    ppo: dict[str, Any]
    a2c: dict[str, Any]
    grpo: Mapping[str, Any] = MappingProxyType({})
    kwargs: Mapping[str, Any] = MappingProxyType({})


EPISODES: Final = {
    "CartPole-v1": Episodes(
        100_000,
        {"n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98}
        | {"n_epochs": 20, "learning_rate": "lin_1e-3", "clip_range": "lin_0.2"},
        {"n_envs": 8},
        {"batch_size": 256, "n_epochs": 20, "learning_rate": "lin_3e-3"},
    ),
    "Acrobot-v1": Episodes(
        150_000,
        {"n_envs": 16, "n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4, "normalize": True},
        {"n_envs": 16, "normalize": True},
        {"batch_size": 128, "learning_rate": 1e-3},
    ),
    # rl_zoo3 has nothing about it
    "FrozenLake-v1": Episodes(
        50_000,
        {"n_envs": 8, "n_steps": 256},
        {"n_envs": 8},
        kwargs={"is_slippery": False},
    ),
    "Pendulum-v1": Episodes(
        100_000,
        {"n_envs": 4, "n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True}
        | {"sde_sample_freq": 4},
        {"n_envs": 8, "n_steps": 8, "gae_lambda": 0.9, "vf_coef": 0.4, "gamma": 0.9}
        | {"learning_rate": "lin_7e-4", "use_sde": True, "normalize": True}
        | {"policy_kwargs": {"log_std_init": -2, "ortho_init": False}},
        {"gamma": 0.9, "batch_size": 128, "learning_rate": "lin_1e-3", "use_sde": True}
        | {"sde_sample_freq": 4},
    ),
    "LunarLander-v3": Episodes(
        200_000,
        {"n_envs": 16, "n_steps": 1024, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4}
        | {"ent_coef": 0.01},
        {"n_envs": 8, "gamma": 0.995, "learning_rate": "lin_8.3e-4", "ent_coef": 1e-5},
        {"gamma": 0.999},
    ),
}


class Problem(NamedTuple):
    """A contextual bandit with full information: contexts (N, O), rewards (N, A) of each action."""

    contexts: NDArray[np.float32]
    rewards: NDArray[np.float64]

    @property
    def optimum(self) -> float:
        """Mean reward of each context's best action."""
        return float(self.rewards.max(axis=1).mean())

    def share(self, actions: ArrayLike) -> float:
        """Mean reward of actions (N,) over the optimum."""
        chosen = self.rewards[np.arange(len(self.rewards)), np.asarray(actions)]
        return float(chosen.mean() / self.optimum)


def problem(name: str) -> Problem:
    """One of `PROBLEMS`."""
    draw = np.random.default_rng(GENERATOR)
    if name in CLASSES:
        try:
            from sklearn import datasets
        except ImportError:
            raise InputError(
                'the classification bandits need scikit-learn: pip install "maw_gym[benchmark]"'
            ) from None
        contexts, target = getattr(datasets, CLASSES[name])(return_X_y=True)
        deviation = contexts.std(axis=0)
        contexts = (contexts - contexts.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
        rewards = np.eye(target.max() + 1)[target]
    elif name == "one-hot":
        contexts, rewards = np.eye(32), np.eye(32)[draw.permutation(32)]
    elif name in ("linear", "offset"):
        contexts = draw.standard_normal((1000, 16))
        rewards = contexts @ draw.standard_normal((16, 8)) / 4
        rewards -= rewards.mean(axis=1, keepdims=True)
        if name == "offset":
            common = contexts @ draw.standard_normal(16)
            rewards += 20 * (common - common.mean())[:, None]
    elif name == "ring":
        contexts = draw.standard_normal((1000, 2))
        order = np.square(contexts).sum(axis=1).argsort().argsort()
        rewards = np.eye(8)[order // 125]
    else:
        assert name == "dense"
        contexts, rewards = np.eye(16), draw.random((16, 8))
    return Problem(contexts.astype(np.float32), rewards)


class ProblemEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """Contexts of a problem drawn uniformly, one action each, autoreset in the same step."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, problem: Problem, num_envs: int, group_size: int = 1) -> None:
        self.problem = problem
        self.num_envs = num_envs
        self.group_size = group_size
        contexts, rewards = problem.contexts, problem.rewards
        self.single_observation_space = spaces.Box(
            contexts.min(axis=0), contexts.max(axis=0), dtype=np.float32
        )
        self.single_action_space = spaces.Discrete(rewards.shape[1])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Show new contexts (E, O)."""
        super().reset(seed=seed)
        return self._drawn(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Reward actions (E,) and show the next contexts."""
        rewards = self.problem.rewards[self._rows, actions]
        final = {"final_obs": self.problem.contexts[self._rows], "final_info": {}}
        ended = np.ones(self.num_envs, np.bool_)
        return self._drawn(), rewards, ended, ~ended, final

    def _drawn(self) -> NDArray[np.float32]:
        groups = self.np_random.integers(
            len(self.problem.contexts), size=self.num_envs // self.group_size
        )
        self._rows = groups.repeat(self.group_size)
        return self.problem.contexts[self._rows]
