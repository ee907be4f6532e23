"""A reward of one's own: a wrapper over the terms, which stand in `info`.

Run `python examples/own_reward.py [DATASET] [STEPS]`; it prints something like

    mean reward of the last 100 episodes: 0.217
"""

import sys

import gymnasium as gym

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3

dataset = sys.argv[1] if len(sys.argv) > 1 else "pydocs"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000


class FocusedAndRight(gym.Wrapper):
    """Pays for attention that is focused and finds the right documents."""

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, info["focus"] * info["alignment"], terminated, truncated, info


def make():
    """One environment."""
    env = gym.make("maw_gym:MAWDepth-v0", dataset=dataset, observation="profile")
    return FocusedAndRight(env)


mode = gym.vector.AutoresetMode.SAME_STEP
envs = to_sb3(gym.vector.SyncVectorEnv([make] * 64, autoreset_mode=mode), group_size=8)
model = GRPO("MlpPolicy", envs, seed=0, device="cpu").learn(steps)
rewards = [episode["r"] for episode in model.ep_info_buffer]
print(f"mean reward of the last {len(rewards)} episodes: {sum(rewards) / len(rewards):.3f}")
