"""GRPO on a bandit of one's own: any Gymnasium environment whose episodes last one step.

Run `python examples/grpo_on_a_bandit.py`; it prints

    mean reward of the greedy policy: 1.00
"""

import gymnasium as gym
import numpy as np

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3

COLOURS = 5


class SayTheColour(gym.Env):
    """Shows one of five colours; naming it is paid 1, the next one in the row half."""

    observation_space = gym.spaces.Box(0, 1, (COLOURS,), np.float32)
    action_space = gym.spaces.Discrete(COLOURS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.colour = int(self.np_random.integers(COLOURS))
        return np.eye(COLOURS, dtype=np.float32)[self.colour], {}

    def step(self, action):
        distance = (action - self.colour) % COLOURS
        reward = {0: 1.0, 1: 0.5}.get(int(distance), 0.0)
        return np.eye(COLOURS, dtype=np.float32)[self.colour], reward, True, False, {}


# GRPO compares 8 answers to the same observation: neighbours in groups of 8 show the same one.
mode = gym.vector.AutoresetMode.SAME_STEP
envs = gym.vector.SyncVectorEnv([SayTheColour] * 32, autoreset_mode=mode)
model = GRPO("MlpPolicy", to_sb3(envs, group_size=8), seed=0, device="cpu")
model.learn(10_000)

shown = np.eye(COLOURS, dtype=np.float32)
answers, _ = model.predict(shown, deterministic=True)
rewards = np.eye(COLOURS) + 0.5 * np.roll(np.eye(COLOURS), 1, axis=1)
print(f"mean reward of the greedy policy: {rewards[np.arange(COLOURS), answers].mean():.2f}")
