"""Kill real runs, resume them, and compare what they leave with a run that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMED = ("time/fps",)


def command(runner: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"runners.{runner}", *map(str, arguments)]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MAW_GYM_HOME": str(home)}


def run(line: list[str], home: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        line, env=environment(home), capture_output=True, text=True, timeout=280, check=False
    )


def killed(
    line: list[str], run_folder: Path, home: Path, seconds: float, number: int
) -> tuple[int, list[str]]:
    """Start a run, wait until it trains and `seconds` more, and send a signal.

    Returns:
        The exit status, 0 if the run was quicker, and what stood on stderr.
    """
    # A run trains when its TensorBoard file is there, a resumed one when it has its own.
    events = len(list(run_folder.glob("events*")))
    with subprocess.Popen(
        line, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(run_folder.glob("events*"))) > events:
                break
            time.sleep(0.002)
        time.sleep(seconds)
        process.send_signal(number)
        assert process.stderr is not None
        told = process.stderr.read().splitlines()
        return process.wait(timeout=60), told


def scalars(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every tag, as TensorBoard shows them."""
    found = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if tag not in TIMED
    }


def metrics(run_folder: Path) -> dict[str, Any]:
    found = json.loads((run_folder / "metrics.json").read_text())
    del found["wall_seconds"]
    return dict(found)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs; empty where they ended alike, bit for bit."""
    found = []
    if metrics(one) != metrics(other):
        found.append("metrics.json")
    # The last checkpoint holds weights, optimizer, generators, environment: everything.
    files = ["router.safetensors", "encoder.safetensors"]
    files += [str(Path("checkpoints") / sorted((one / "checkpoints").iterdir())[-1].name)]
    for name in files:
        mine, others = load_file(one / name), load_file(other / name)
        for tensor in sorted(set(mine) | set(others)):
            if tensor == "episodes/t":  # seconds of the wall clock
                continue
            if tensor not in mine or tensor not in others:
                found.append(f"{name}: {tensor} is in one only")
            elif not torch.equal(mine[tensor], others[tensor]):
                found.append(f"{name}: {tensor}")
    curves, other_curves = scalars(one), scalars(other)
    for tag in sorted(set(curves) | set(other_curves)):
        # NaN, which PPO logs for an explained variance of nothing, equals itself here.
        if repr(curves.get(tag)) != repr(other_curves.get(tag)):
            found.append(f"TensorBoard: {tag}")
    return found


def kill_until_done(
    runner: str, arguments: list[object], logdir: Path, name: str, home: Path, draw: random.Random,
    kills: int, longest: float,
) -> list[str]:  # fmt: skip
    """Run, kill up to `kills` times at random moments, resume to the end; says what happened."""
    folder = logdir / name
    told = []
    start = command(runner, *arguments, "--logdir", logdir, "--run-name", name)
    line = start
    for _ in range(kills):
        seconds = draw.uniform(0, longest)
        status, _ = killed(line, folder, home, seconds, signal.SIGKILL)
        last = sorted(path.stem for path in (folder / "checkpoints").glob("*.safetensors"))
        told.append(f"{seconds:.3f} s -> {status}, {last[-1] if last else 'no checkpoint'}")
        if (folder / "metrics.json").exists():
            break
        line = command(runner, "--resume", folder) if (folder / "config.json").exists() else start
    if not (folder / "metrics.json").exists():
        done = run(line, home)
        if done.returncode:
            raise RuntimeError(done.stderr)
    return told
