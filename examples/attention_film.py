"""Film one query's attention through every depth, from the most focused to the broadest.

Run `python examples/attention_film.py FILE.gif [DATASET QUERY]`; it prints

    32 depths of getpass.getuser
"""

import sys

import gymnasium as gym
from PIL import Image

import maw_gym  # noqa: F401  # registers MAWDepth-v0

path, dataset, query = (*sys.argv[1:], "pydocs", "getpass.getuser")[:3]
env = gym.make("MAWDepth-v0", dataset=dataset, split="test", render_mode="rgb_array")

frames = []
for depth in range(env.action_space.n):
    env.reset(options={"query_id": query})
    env.step(depth)
    frame = Image.fromarray(env.render())
    frame = frame.resize((frame.width * 3 // 4, frame.height * 3 // 4))
    frames.append(frame.quantize(128, dither=Image.Dither.NONE))
frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, loop=0)
print(f"{len(frames)} depths of {query}")
