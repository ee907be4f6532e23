"""What it costs to let threads spin or sleep at barriers, beside 0 to 3 processes that compute.

`python -m runners.benchmarks.waiting` prints milliseconds of one call of `depth_statistics` for 4
texts of 128 tokens and of one product of 512 x 512 numbers, and how many times the first row's they
are. Each way is a process of its own, since the waiting is chosen when torch is loaded.
"""

import os
import statistics
import subprocess
import sys
import time

WAYS = {
    "spinning (libgomp's default)": {"GOMP_SPINCOUNT": "300000"},
    "spinning for 10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "asleep (maw_gym's default)": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "while True: pass"


def seconds(budget: float) -> list[float]:
    """Medians of both functions in this process."""
    import torch

    from maw_gym.attention.depth_attention import depth_statistics
    from runners.benchmarks.attention_rows import Shape

    problem = Shape(4, 128).problem(torch.device("cpu"))
    square = torch.randn(512, 512)
    found = []
    for function in (lambda: depth_statistics(problem.inputs), lambda: square @ square):
        times: list[float] = []
        stop = time.perf_counter() + budget
        function()
        while time.perf_counter() < stop or len(times) < 3:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        found.append(statistics.median(times))
    return found


def measured(settings: dict[str, str], busy: int, budget: float) -> list[float]:
    """Medians in a process of these settings, beside so many busy ones."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    kept = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "runners.benchmarks.waiting", "--once", str(budget)]
    try:
        done = subprocess.run(
            command, env=kept | settings, capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return [float(number) for number in done.stdout.split()]


def main(budget: float = 5.0, most: int = 3) -> None:
    """Print one line for every way and number of busy processes."""
    print(f"{'busy':>4}  {'threads wait':30} {'statistics':>12} {'product':>12}  times the first")
    for busy in range(most + 1):
        first: list[float] = []
        for name, settings in WAYS.items():
            found = measured(settings, busy, budget)
            first = first or found
            ratios = ", ".join(
                f"{one / other:.2f}" for one, other in zip(found, first, strict=True)
            )
            print(
                f"{busy:>4}  {name:30} {found[0] * 1e3:9.2f} ms {found[1] * 1e3:9.2f} ms  {ratios}"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(*seconds(float(sys.argv[2])))
    else:
        main()
