"""Start real runs in processes of their own, kill and resume them, and compare what they leave."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maw_gym.files import fingerprint

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

    def ended(self):
        """Its exit status, minus the number of a signal, and what it has said."""
        self.process.join(200)
        assert self.process.exitcode is not None, self.err.read_text()
        return self.process.exitcode, self.out.read_text(), self.err.read_text()


def start(command, *arguments, home, tiny=False, **environment):
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


def _run(words, out, err, environment, tiny):
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


def run(command, *arguments, home):
    """Run a command to its end, which must be a good one; what stood on stdout."""
    status, out, err = start(command, *arguments, home=home).ended()
    assert status == 0, err
    return out


def await_file(begun, sign):
    """Wait until there is a file (a pattern) more, or the run has ended."""
    before = len(list(sign.parent.glob(sign.name)))
    deadline = time.monotonic() + 120
    while begun.process.is_alive() and time.monotonic() < deadline:
        if len(list(sign.parent.glob(sign.name))) > before:
            return
        time.sleep(0.002)


def stopped(begun, sign, seconds, number):
    """Send a signal some seconds after a file is there; status (0: it was quicker) and stderr."""
    await_file(begun, sign)
    time.sleep(seconds)
    if begun.process.is_alive():
        os.kill(begun.process.pid, number)
    status, _, err = begun.ended()
    return status, err.splitlines()


def scalars(run_folder):
    """Steps and values of every tag, as TensorBoard shows them."""
    found = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag != "time/fps"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


def metrics(run_folder):
    found = json.loads((run_folder / "metrics.json").read_text())
    del found["wall_seconds"]
    return found


def left(run_folder):
    """What a finished run has left, by name, but for the clock."""
    # NaN, which PPO logs for an explained variance of nothing, equals itself here.
    found = {tag: repr(curve) for tag, curve in scalars(run_folder).items()}
    found["metrics.json"] = metrics(run_folder)
    # The last checkpoint holds weights, optimizer, generators, environment: everything.
    last = sorted(run_folder.glob("checkpoints/*"))[-1:]
    for path in [run_folder / "router.safetensors", run_folder / "encoder.safetensors", *last]:
        tensors = load_file(path).items()
        found |= {f"{path.name}: {name}": fingerprint({"": one}) for name, one in tensors}
    return {name: value for name, value in found.items() if not name.endswith(": episodes/t")}


def differences(one, other):
    """What differs between two finished runs; empty where they ended alike, bit for bit."""
    mine, others = left(one), left(other)
    return [name for name in mine | others if mine.get(name) != others.get(name)]


def kill_until_done(command, arguments, logdir, name, home, draw, kills, longest):
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
