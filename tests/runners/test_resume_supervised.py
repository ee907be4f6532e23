"""A real supervised run, killed and resumed, on a tiny collection."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from killing import command, environment, metrics, run, scalars
from safetensors.torch import load_file

from maw_gym.errors import InputError
from runners.experiments.runs import run_settings
from runners.train_supervised import SupervisedRunSettings


def test_a_killed_run_ends_like_the_whole_one(
    tiny_folder: Path, tmp_path: Path, maw_gym_home: Path
) -> None:
    line = command(
        "train_supervised", "--dataset", tiny_folder, "--encoder", "untrained", "--device", "cpu",
        "--epochs", 150, "--logdir", tmp_path, "--run-name",
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run([*line, "whole"], maw_gym_home)
    assert done.returncode == 0, done.stderr

    checkpoint = killed / "router.checkpoints"
    with subprocess.Popen(
        [*line, "killed"], env=environment(maw_gym_home),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (killed / "metrics.json").exists()

    done = run(command("train_supervised", "--resume", killed), maw_gym_home)
    assert done.returncode == 0, done.stderr
    assert metrics(killed) == metrics(whole)
    mine, other = (load_file(folder / "router.safetensors") for folder in (killed, whole))
    assert set(mine) == set(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    curves = scalars(killed)
    assert curves == scalars(whole)
    assert len(curves["train/loss"]) == 150
    assert {path.name for path in killed.iterdir() if "checkpoint" in path.name} == set()

    with pytest.raises(InputError, match="is finished; there is nothing to go on with"):
        run_settings(SupervisedRunSettings, killed)
