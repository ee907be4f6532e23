"""Contextual bandits small enough to work out by hand; the best action is the context's number."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.tables.depth_table import DepthTable

CONTEXTS = 4
EYE = np.eye(CONTEXTS, dtype=np.float32)  # of each context what is observed, and the rewards
TABLE = DepthTable(("q0", "q1", "q2", "q3"), EYE, EYE, EYE, EYE, {"content": EYE})


class BanditEnv(gym.Env):
    """One step per episode; reward 1 for action == context, else 0."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(self, length: int = 1, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (CONTEXTS,), np.float32)
        self.action_space = spaces.Discrete(CONTEXTS)
        self.length = length
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps = 0
        self.context = (options or {}).get("context", int(self.np_random.integers(CONTEXTS)))
        return EYE[self.context], {"query_id": f"q{self.context}"}

    def step(self, action: int):
        self.steps += 1
        reward = float(action == self.context)
        info = {"query_id": f"q{self.context}", "regret": 1.0 - reward}
        return EYE[self.context], reward, self.steps >= self.length, False, info

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.context, dtype=np.uint8)

    def context_number(self, plus: int = 0) -> int:
        return self.context + plus


def grouped_bandit(num_envs: int = 64, group_size: int = 8, **settings: Any) -> VectorEnv:
    """The same in batches; groups of neighbours share a context."""
    about = {"table": TABLE, "observation": "content", "reward_weights": (0, 0, 1)} | settings
    return GRPOVectorEnvironment(num_envs, group_size, **about)
