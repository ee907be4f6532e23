"""Contextual bandits small enough to work out by hand; the best action is the context's number."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

CONTEXTS = 4


class BanditEnv(gym.Env):
    """One step per episode; reward 1 for action == context, else 0."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(self, length: int = 1, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (CONTEXTS,), np.float32)
        self.action_space = spaces.Discrete(CONTEXTS)
        self.length = length
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps = 0
        self.context = (options or {}).get("context", int(self.np_random.integers(CONTEXTS)))
        return np.eye(CONTEXTS, dtype=np.float32)[self.context], {"query_id": f"q{self.context}"}

    def step(self, action: int):
        self.steps += 1
        reward = float(action == self.context)
        info = {"query_id": f"q{self.context}", "regret": 1.0 - reward}
        observation = np.eye(CONTEXTS, dtype=np.float32)[self.context]
        return observation, reward, self.steps >= self.length, False, info

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.context, dtype=np.uint8)

    def context_number(self, plus: int = 0) -> int:
        return self.context + plus


class GroupedBanditEnv(VectorEnv):
    """The same in batches; groups of neighbours share a context. It reuses its own arrays."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 64, group_size: int = 8, cycle: bool = False) -> None:
        self.num_envs = num_envs
        self.group_size = group_size
        self.cycle = cycle  # contexts in a fixed order from each reset
        self.single_observation_space = spaces.Box(0.0, 1.0, (CONTEXTS,), np.float32)
        self.single_action_space = spaces.Discrete(CONTEXTS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations = np.zeros((num_envs, CONTEXTS), np.float32)
        self._rewards = np.zeros(num_envs)
        self.contexts = np.zeros(num_envs, np.int64)

    def _draw(self) -> None:
        groups = self.num_envs // self.group_size
        if self.cycle:
            drawn = (np.arange(groups) + self.turn) % CONTEXTS
            self.turn += 1
        else:
            drawn = self.np_random.integers(CONTEXTS, size=groups)
        self.contexts = np.repeat(drawn, self.group_size)
        self._observations[:] = np.eye(CONTEXTS)[self.contexts]

    def _ids(self) -> dict[str, Any]:
        return {"query_id": np.array([f"q{context}" for context in self.contexts])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.turn = 0
        self._draw()
        if options:
            self.contexts[:] = options["context"]
            self._observations[:] = np.eye(CONTEXTS)[self.contexts]
        return self._observations, self._ids()

    def step(self, actions: np.ndarray):
        self._rewards[:] = actions == self.contexts
        final = self._ids() | {"regret": (1.0 - self._rewards).astype(np.float32)}
        final_obs = self._observations.copy()
        self._draw()
        done = np.ones(self.num_envs, bool)
        infos = self._ids() | {"final_info": final, "final_obs": final_obs}
        return self._observations, self._rewards, done, ~done, infos
