"""What takes minutes: `pytest -m slow tests/endurance -n 0`."""

import gc
import random
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from hand_made import random_table
from stable_baselines3.common.logger import Logger

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.callbacks import ResumedTensorBoard, training_state
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.checkpoints import Checkpoints
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.run import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "runners"))

from killing import differences, kill_until_done, run, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS, ROUNDS, RUNS, STEPS, TRAININGS = 30, 20, 4, 2_000_000, 200
ENVS = 64


def test_thirty_kills_end_like_runs_left_alone(tiny_folder, tmp_path):
    draw, done, runs = random.Random(0), 0, 0
    common: list[object] = [
        "--dataset", tiny_folder, "--encoder", "untrained", "--observation", "attention", "profile",
        "--timesteps", 12800, "--num-envs", 16, "--checkpoint-every", 5, "--device", "cpu",
    ]  # fmt: skip
    runners, home = ("train grpo", "train ppo"), tmp_path / "home"
    for runner in runners:
        run(runner, *common, "--logdir", tmp_path, "--run-name", runner, home=home)
    while done < KILLS:
        runner, name = runners[runs % 2], f"killed-{runs}"
        told = kill_until_done(
            runner, common, tmp_path, name, home, draw, min(3, KILLS - done), 4.0
        )
        done += sum("-> -9" in line for line in told)
        runs += 1
        print(f"{runner}: {'; '.join(told)}", flush=True)
        assert differences(tmp_path / runner, tmp_path / name) == []


def test_runs_side_by_side_leave_a_result_each(tiny_folder, tmp_path):
    common: list[object] = [
        "--dataset", tiny_folder, "--encoder", "untrained", "--observation", "profile",
        "--timesteps", 128, "--num-envs", 16, "--device", "cpu",
    ]  # fmt: skip

    def statuses(*lines):
        at_once = [start("train grpo", *line, home=tmp_path / "home") for line in lines]
        return sorted(one.ended()[0] for one in at_once)

    rates = [round(0.001 * (row + 1), 3) for row in range(RUNS)]
    for number in range(ROUNDS):  # the caches of the first are cold
        logdir = tmp_path / str(number)
        flags = [*common, "--logdir", logdir, "--learning-rate"]
        assert statuses(*([*flags, rate] for rate in rates)) == [0] * RUNS
        finished = [Run(metrics.parent) for metrics in logdir.glob("*/metrics.json")]
        assert sorted(run.settings["learning_rate"] for run in finished) == rates
    line = [*common, "--logdir", tmp_path / "same", "--run-name", "one"]
    assert statuses(*[line] * RUNS) == [0] + [2] * (RUNS - 1)


def megabytes_per_step(step, count):
    """Resident memory gained by a step, by least squares over the second half of 40 moments."""
    process, seen = psutil.Process(), []
    for number in range(count):
        step(number)
        if number % (count // 40) == 0:
            gc.collect()
            seen.append((number, process.memory_info().rss / 2**20))
    steps, megabytes = np.array(seen[len(seen) // 2 :]).T
    return float(np.polyfit(steps, megabytes, 1)[0])


def test_memory_stays_flat(tmp_path):
    env = GRPOVectorEnvironment(ENVS, group_size=8, table=random_table(1000, 32))
    env.reset(seed=0)
    draw = np.random.default_rng(0)
    gained = megabytes_per_step(lambda _: env.step(draw.integers(32, size=ENVS)), STEPS // ENVS)
    assert gained / ENVS * 100_000 < 1

    def train(number):
        """One short training, with events and a checkpoint."""
        env = GRPOVectorEnvironment(ENVS, group_size=8, table=random_table(200, 32, number))
        model = GRPO("MlpPolicy", to_sb3(env), advantage="outcome", seed=number, device="cpu")
        folder = tmp_path / f"run-{number % 5}"
        events = ResumedTensorBoard(folder, None)
        model.set_logger(Logger(str(tmp_path), [events]))
        model.learn(1024)
        checkpoints = Checkpoints(folder / "checkpoints", {"number": number % 5})
        checkpoints.write(number, *training_state(model))
        events.close()
        env.close()

    train(0)
    handles = psutil.Process().num_fds()
    assert megabytes_per_step(train, TRAININGS) / 1024 * 100_000 < 1
    assert psutil.Process().num_fds() == handles
