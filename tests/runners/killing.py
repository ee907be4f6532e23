"""Start real runs in processes of their own, kill and resume them, and compare what they leave."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMED = ("time/fps",)
# One server imports what runs need; every run is a fork of it, and pays no imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["maw_gym.runners.experiments.report", "maw_gym.runners.train_encoder"]
)


class Started(NamedTuple):
    """A run in a process of its own, and the files of its streams."""

    process: Any
    out: Path
    err: Path

    def ended(self) -> tuple[int, str, str]:
        """Its exit status, minus the number of a signal, and what it has said."""
        self.process.join(200)
        assert self.process.exitcode is not None, self.err.read_text()
        return self.process.exitcode, self.out.read_text(), self.err.read_text()


def start(
    command: str, *arguments: object, home: Path, tiny: bool = False, **environment: object
) -> Started:
    """Start `maw-gym COMMAND ARGUMENTS`; a `tiny` collection trains encoders on its own pairs."""
    place = home / "streams" / f"{time.monotonic_ns()}"
    place.mkdir(parents=True)
    streams = place / "out", place / "err"
    values = {"OMP_NUM_THREADS": "1", "MAW_GYM_HOME": str(home)}
    values |= {name: str(value) for name, value in environment.items()}
    words = [*command.split(), *map(str, arguments)]
    process = CONTEXT.Process(target=_run, args=(words, *map(str, streams), values, tiny))
    process.start()
    return Started(process, *streams)


def _run(words: list[str], out: str, err: str, environment: dict[str, str], tiny: bool) -> None:
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)
    from maw_gym.corpora import splits
    from maw_gym.encoders.training import selection
    from maw_gym.runners.cli import main

    if tiny:
        splits.ENCODER_MINIMUM = 0
        selection._candidates = lambda one, text: {"own pairs": [one]}
    main(words)


def run(command: str, *arguments: object, home: Path) -> str:
    """Run a command to its end, which must be a good one; what stood on stdout."""
    status, out, err = start(command, *arguments, home=home).ended()
    assert status == 0, err
    return out


def await_file(begun: Started, sign: Path) -> None:
    """Wait until there is a file (a pattern) more, or the run has ended."""
    before = len(list(sign.parent.glob(sign.name)))
    deadline = time.monotonic() + 120
    while begun.process.is_alive() and time.monotonic() < deadline:
        if len(list(sign.parent.glob(sign.name))) > before:
            return
        time.sleep(0.002)


def stopped(begun: Started, sign: Path, seconds: float, number: int) -> tuple[int, list[str]]:
    """Send a signal some seconds after a file is there; status (0: it was quicker) and stderr."""
    await_file(begun, sign)
    time.sleep(seconds)
    if begun.process.is_alive():
        os.kill(begun.process.pid, number)
    status, _, err = begun.ended()
    return status, err.splitlines()


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
    found = [] if metrics(one) == metrics(other) else ["metrics.json"]
    # The last checkpoint holds weights, optimizer, generators, environment: everything.
    last = [str(path.relative_to(one)) for path in sorted(one.glob("checkpoints/*"))[-1:]]
    for name in ["router.safetensors", "encoder.safetensors", *last]:
        mine, others = load_file(one / name), load_file(other / name)
        for tensor in sorted((mine.keys() | others.keys()) - {"episodes/t"}):  # the clock
            both = tensor in mine and tensor in others
            if not both or not torch.equal(mine[tensor], others[tensor]):
                found.append(f"{name}: {tensor}")
    # NaN, which PPO logs for an explained variance of nothing, equals itself here.
    curves, others_curves = (scalars(folder) for folder in (one, other))
    for tag in sorted(curves.keys() | others_curves.keys()):
        if repr(curves.get(tag)) != repr(others_curves.get(tag)):
            found.append(f"TensorBoard: {tag}")
    return found


def kill_until_done(
    command: str, arguments: list[object], logdir: Path, name: str, home: Path, draw: random.Random,
    kills: int, longest: float,
) -> list[str]:  # fmt: skip
    """Run, kill up to `kills` times at random moments, resume to the end; says what happened."""
    folder, told = logdir / name, []
    words = first = [*arguments, "--logdir", logdir, "--run-name", name]
    for _ in range(kills):
        seconds = draw.uniform(0, longest)
        # A run trains when its TensorBoard file is there, a resumed one when it has its own.
        begun = start(command, *words, home=home)
        status, _ = stopped(begun, folder / "events*", seconds, signal.SIGKILL)
        last = sorted(path.stem for path in folder.glob("checkpoints/*.safetensors"))
        told.append(f"{seconds:.3f} s -> {status}, {last[-1] if last else 'no checkpoint'}")
        if (folder / "metrics.json").exists():
            return told
        words = ["--resume", folder] if (folder / "config.json").exists() else first
    run(command, *words, home=home)
    return told
