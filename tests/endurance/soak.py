"""Two million environment steps and 200 short trainings in one process; memory must stay flat.

python tests/endurance/soak.py --steps 2000000 --trainings 200
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from hand_made import random_table
from stable_baselines3.common.logger import Logger

from agents.grpo import GRPO
from agents.sb3.callbacks import SyncedTensorBoard
from agents.sb3.training_state import training_state
from agents.sb3.vec_env import to_sb3
from maw_gym.checkpoints import Checkpoints
from maw_gym.envs.vector_environment import GRPOVectorEnvironment

ENVS = 64
TRAINING = 1024  # steps of a training


def resident(process: psutil.Process) -> float:
    """Resident memory in MB, after a collection."""
    gc.collect()
    return process.memory_info().rss / 2**20


def slope(steps: list[int], megabytes: list[float]) -> float:
    """MB per 100,000 steps by least squares, over the second half of the points."""
    half = len(steps) // 2
    return float(np.polyfit(steps[half:], megabytes[half:], 1)[0] * 100_000)


def step_environments(steps: int, process: psutil.Process) -> tuple[list[int], list[float]]:
    """Random depths in one vector environment; memory at 40 moments."""
    environment = GRPOVectorEnvironment(ENVS, group_size=8, table=random_table(1000, 32))
    environment.reset(seed=0)
    draw = np.random.default_rng(0)
    seen: tuple[list[int], list[float]] = ([], [])
    every = max(1, steps // ENVS // 40)
    for count in range(1, steps // ENVS + 1):
        environment.step(draw.integers(32, size=ENVS))
        if count % every == 0:
            seen[0].append(count * ENVS)
            seen[1].append(resident(process))
    return seen


def train(number: int, folder: Path) -> None:
    """One short training, with events and a checkpoint."""
    environment = GRPOVectorEnvironment(ENVS, group_size=8, table=random_table(200, 32, number))
    model = GRPO("MlpPolicy", to_sb3(environment), advantage="outcome", seed=number, device="cpu")
    events = SyncedTensorBoard(folder / f"run-{number % 5}", None)
    model.set_logger(Logger(str(folder), [events]))
    model.learn(TRAINING)
    run = folder / f"run-{number % 5}" / "checkpoints"
    Checkpoints(run, {"number": number % 5}).write(number, *training_state(model))
    events.close()
    environment.close()


def main(steps: int, trainings: int) -> dict[str, Any]:
    """Run both and say what became of memory and file handles."""
    process = psutil.Process(os.getpid())
    start = time.perf_counter()
    environment = step_environments(steps, process)
    with tempfile.TemporaryDirectory() as name:
        train(0, Path(name))
        handles = process.num_fds()
        moments: tuple[list[int], list[float]] = ([], [])
        for number in range(1, trainings + 1):
            train(number, Path(name))
            moments[0].append(number * TRAINING)
            moments[1].append(resident(process))
        left = process.num_fds() - handles
    return {
        "environment steps": steps,
        "MB per 100,000 environment steps": round(slope(*environment), 4),
        "trainings": trainings,
        "MB per training": round(slope(*moments) * TRAINING / 100_000, 4),
        "MB per 100,000 training steps": round(slope(*moments), 4),
        "file handles more than after the first training": left,
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--trainings", type=int, default=200)
    arguments = parser.parse_args()
    for what, found in main(arguments.steps, arguments.trainings).items():
        print(f"{what}: {found}")
