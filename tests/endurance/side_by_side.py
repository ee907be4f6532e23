"""Start runs of one learner at once, without names; every one must leave its own result.

python tests/endurance/side_by_side.py --rounds 20 --runs 4
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "runners")]

from killing import command, environment  # noqa: E402
from tiny_collection import write_tiny_collection  # noqa: E402


def finished(logdir: Path) -> list[float]:
    """The learning rates of the runs that have left a result, in order."""
    rates = []
    for metrics in logdir.glob("*/metrics.json"):
        assert json.loads(metrics.read_text())["retrieval"]["nDCG@10"] > 0
        config = json.loads((metrics.parent / "config.json").read_text())
        rates.append(config["settings"]["learning_rate"])
    return sorted(rates)


def together(lines: list[list[str]], home: Path) -> list[int]:
    """The exit statuses of commands that are started at once."""
    processes = [
        subprocess.Popen(
            line, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for line in lines
    ]
    return [process.wait(timeout=280) for process in processes]


def main(rounds: int, runs: int) -> tuple[int, list[int]]:
    """Results of `rounds` times `runs` runs, and the statuses of `runs` of one and the same name.

    Returns:
        How many results there are, each of another learning rate in its round; and exit statuses.
    """
    results = 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        dataset = write_tiny_collection(base / "tiny")
        common: list[object] = [
            "--dataset", dataset, "--encoder", "untrained", "--observation", "profile",
            "--timesteps", 128, "--num-envs", 16, "--device", "cpu",
        ]  # fmt: skip
        rates = [round(0.001 * (row + 1), 3) for row in range(runs)]
        for number in range(rounds):
            # Caches of the first round are cold, and filled by one run of the four.
            logdir = base / f"round-{number}"
            lines = [
                command("train_grpo", *common, "--logdir", logdir, "--learning-rate", rate)
                for rate in rates
            ]
            statuses = together(lines, base / "home")
            left = finished(logdir)
            results += len(set(left) & set(rates)) if statuses == [0] * runs else 0
            if left != rates or statuses != [0] * runs:
                print(f"round {number}: statuses {statuses}, results of {left}", flush=True)
        line = command("train_grpo", *common, "--logdir", base / "same", "--run-name", "one")
        return results, sorted(together([line] * runs, base / "home"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4)
    arguments = parser.parse_args()
    start = time.perf_counter()
    count, same_name = main(arguments.rounds, arguments.runs)
    print(
        f"{count} results of {arguments.rounds} rounds of {arguments.runs} runs at once;"
        f" exit statuses of {arguments.runs} runs of one name: {same_name};"
        f" {time.perf_counter() - start:.0f} s"
    )
    expected = [0] + [2] * (arguments.runs - 1)
    raise SystemExit(count != arguments.rounds * arguments.runs or same_name != expected)
