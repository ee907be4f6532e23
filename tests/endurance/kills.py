"""Kill runs at random moments and compare their ends.

python tests/endurance/kills.py --kills 30 --seed 0
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "runners")]

from killing import command, differences, kill_until_done, run  # noqa: E402
from tiny_collection import write_tiny_collection  # noqa: E402

RUNNERS = ("train_grpo", "train_ppo")


def main(kills: int, seed: int) -> int:
    """Kill `kills` times in all, alternating between the runners; returns the runs that differ."""
    draw = random.Random(seed)
    print(f"seed {seed}")
    done, runs, differing = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        dataset = write_tiny_collection(base / "tiny")
        common: list[object] = [
            "--dataset", dataset, "--encoder", "untrained", "--observation", "attention", "profile",
            "--timesteps", 12800, "--num-envs", 16, "--checkpoint-every", 5, "--device", "cpu",
        ]  # fmt: skip
        for runner in RUNNERS:
            whole = run(
                command(runner, *common, "--logdir", base, "--run-name", runner), base / "home"
            )
            if whole.returncode:
                raise SystemExit(whole.stderr)
        while done < kills:
            runner = RUNNERS[runs % len(RUNNERS)]
            killed = f"killed-{runs}"
            told = kill_until_done(
                runner, common, base, killed, base / "home", draw, min(3, kills - done), 4.0
            )
            done += sum("-> -9" in line for line in told)
            found = differences(base / runner, base / killed)
            runs += 1
            differing += bool(found)
            print(f"{runner}: {'; '.join(told)}: {found or 'identical'}", flush=True)
    print(f"{done} kills, {runs} runs, {runs - differing} ended identically, {differing} did not")
    return differing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    raise SystemExit(bool(main(arguments.kills, arguments.seed)))
