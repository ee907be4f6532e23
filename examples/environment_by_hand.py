"""The environment by hand: one query, its depths, and what each of them is paid.

Run `python examples/environment_by_hand.py [DATASET]`; it prints something like

    query numpy.matrixlib.defmatrix.matrix.sum: observation of 64 numbers, 32 depths
    depth  0: reward 0.555 = 0.3 * 0.271 + 0.3 * 0.738 + 0.4 * 0.631, regret 0.026
    depth 16: reward 0.581 = 0.3 * 0.908 + 0.3 * 0.186 + 0.4 * 0.631, regret 0.001
    depth 31: reward 0.499 = 0.3 * 0.995 + 0.3 * 0.094 + 0.4 * 0.431, regret 0.082
    the best of all depths is paid 0.581, chance 0.546
"""

import sys

import gymnasium as gym

import maw_gym  # noqa: F401  # registers MAWDepth-v0

dataset = sys.argv[1] if len(sys.argv) > 1 else "pydocs"
env = gym.make("MAWDepth-v0", dataset=dataset, observation="profile")

observation, info = env.reset(seed=2)
query = env.unwrapped.query_ids[info["query"]]
depths = env.action_space.n
print(f"query {query}: observation of {observation.size} numbers, {depths} depths")

for depth in (0, depths // 2, depths - 1):
    # An episode is one choice: the same query is asked for again.
    env.reset(options={"query_id": query})
    _, reward, terminated, truncated, info = env.step(depth)
    assert terminated
    assert not truncated
    print(
        f"depth {depth:2}: reward {reward:.3f} = 0.3 * {info['entropy']:.3f}"
        f" + 0.3 * {info['focus']:.3f} + 0.4 * {info['alignment']:.3f},"
        f" regret {info['regret']:.3f}"
    )
best = reward + info["regret"]
print(f"the best of all depths is paid {best:.3f}, chance {info['random']:.3f}")
