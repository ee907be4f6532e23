"""PPO of Stable-Baselines3 on MAWDepth-v0, judged on test queries against chance and hindsight.

Run `python examples/ppo_on_mawdepth.py [DATASET] [STEPS]`; it prints something like

    mean reward 0.474: chance 0.465, best depth of every query 0.491
    share of that gap: 0.35
"""

import sys

import gymnasium as gym
from stable_baselines3 import PPO

import maw_gym
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.envs.bandit import Bandit

dataset = sys.argv[1] if len(sys.argv) > 1 else "pydocs"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000

envs = gym.make_vec("MAWDepth-v0", num_envs=64, dataset=dataset, observation="profile")
# Episodes of one step: there is no later reward to discount.
model = PPO("MlpPolicy", to_sb3(envs), n_steps=16, batch_size=128, gamma=0.0, seed=0, device="cpu")
model.learn(steps)

# Every depth's reward of every query is known, so nothing has to be sampled.
test = Bandit(maw_gym.load_task(dataset, "untrained").table("test"), "profile")
depths, _ = model.predict(test.observations, deterministic=True)
summary = test.summary(depths)
print(
    f"mean reward {summary.mean:.3f}: chance {summary.random:.3f},"
    f" best depth of every query {summary.oracle:.3f}"
)
print(f"share of that gap: {summary.gap_closed:.2f}")
