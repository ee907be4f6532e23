"""A learner of one's own beside those of the package: A2C, tested against one fixed depth.

Run `python examples/own_learner.py [DATASET] [STEPS]`; it prints something like

    best-fixed-reward: reward 0.477, nDCG@10 0.361
    a2c: reward 0.476, nDCG@10 0.358, difference -0.003, p 0.12

or, from a shell, `maw-gym compare --methods grpo examples.own_learner:a2c`.
"""

import sys

import gymnasium as gym
from stable_baselines3 import A2C

import maw_gym
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.runners.experiments.comparison import compare
from maw_gym.runners.experiments.settings import OnlineSettings, Spec


def a2c(task, spec, log):
    """A2C of Stable-Baselines3."""
    seen, table = spec.task.observation, task.table("train")
    envs = to_sb3(gym.make_vec("MAWDepth-v0", num_envs=8, observation=seen, table=table))
    model = A2C("MlpPolicy", envs, seed=spec.task.seed, device="cpu")
    return model.learn(spec.online.timesteps)  # anything that has SB3's `predict`


if __name__ == "__main__":
    dataset = sys.argv[1] if len(sys.argv) > 1 else "pydocs"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    task, spec = maw_gym.load_task(dataset, "untrained"), Spec(online=OnlineSettings(steps))
    made = compare([a2c], task, seeds=(0, 1), baseline="best-fixed-reward", spec=spec)
    for name, row in made.table().iterrows():
        reward, ndcg = row["reward.mean"], row["retrieval.nDCG@10.mean"]
        told = f"{name}: reward {reward:.3f}, nDCG@10 {ndcg:.3f}"
        if name == "a2c":
            told += f", difference {row['test.difference']:.3f}, p {row['test.p']:.2f}"
        print(told)
