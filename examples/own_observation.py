"""A block of your own in the observation: how long a query is.

Run `python examples/own_observation.py [DATASET]`; it prints something like

    65 observed numbers, of which the last is 0.22
"""

import sys

import gymnasium as gym

import maw_gym  # noqa: F401  # registers MAWDepth-v0
from maw_gym.tables.depth_table import BLOCKS, Block

# From the tokens, hidden states and depth statistics of a batch of queries to (B, width) numbers in
# [low, high]; see `Seen` for what there is. Depth tables are computed anew, with the block.
BLOCKS["length"] = Block(
    numbers="1",
    about="tokens of the query, of at most 64",
    of=lambda seen: seen.mask.sum(1, keepdim=True) / 64,
)

dataset = sys.argv[1] if len(sys.argv) > 1 else "pydocs"
env = gym.make("MAWDepth-v0", dataset=dataset, observation=("profile", "length"))
observation, _ = env.reset(seed=2)
print(f"{observation.size} observed numbers, of which the last is {observation[-1]:.2f}")
