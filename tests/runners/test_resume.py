"""Real runs, killed and resumed, on a tiny collection."""

import random
import signal
from pathlib import Path

import pytest
from killing import command, differences, kill_until_done, killed, run, scalars

Arguments = list[object]


def checkpoint_files(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def arguments(tiny_folder: Path) -> Arguments:
    return [
        "--dataset", tiny_folder, "--encoder", "untrained", "--observation", "profile",
        "--timesteps", 6400, "--num-envs", 16, "--n-steps", 8, "--checkpoint-every", 4,
        "--evaluations", 3, "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(arguments: Arguments, logdir: Path, maw_gym_home: Path) -> Path:
    """A run of GRPO that nobody disturbed."""
    done = run(
        command("train_grpo", *arguments, "--logdir", logdir, "--run-name", "whole"), maw_gym_home
    )
    assert done.returncode == 0, done.stderr
    return logdir / "whole"


def test_tensorboard_shows_every_step_once(whole: Path):
    curves = scalars(whole)
    rollouts = list(range(128, 6401, 128))
    assert [step for step, _ in curves["rollout/ep_rew_mean"]] == rollouts
    # What an update records is written after the next rollout.
    assert [step for step, _ in curves["train/loss"]] == rollouts[1:]
    # 50 rollouts, 3 evaluations asked for: every 16th, and the end.
    assert [step for step, _ in curves["eval/reward"]] == [0, 2048, 4096, 6144, 6400]


def test_keeps_two_checkpoints(whole: Path):
    # Before rollouts 5, 9, ... of 128 steps, and at the end.
    names = [path.name for path in checkpoint_files(whole)]
    assert names == ["000000006144.safetensors", "000000006400.safetensors"]


def test_killed_runs_end_like_the_whole_one(
    whole: Path, arguments: Arguments, logdir: Path, maw_gym_home: Path
):
    told = kill_until_done(
        "train_grpo", arguments, logdir, "killed", maw_gym_home, random.Random(5), 2, 2.5
    )
    assert "-> -9" in told[0], told
    assert differences(whole, logdir / "killed") == [], told


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(
    whole: Path, arguments: Arguments, logdir: Path, maw_gym_home: Path
):
    folder = logdir / "stopped"
    line = command("train_grpo", *arguments, "--logdir", logdir, "--run-name", "stopped")
    # Every checkpoint but the one of the signal is out of reach.
    line += ["--checkpoint-every", "1000"]
    status, told = killed(line, folder, maw_gym_home, 0.2, signal.SIGTERM)
    assert status == 143
    assert told[-1] == f"error: stopped by SIGTERM; go on with --resume {folder}"
    (written,) = checkpoint_files(folder)
    assert int(written.stem) < 6400
    left = folder / "checkpoints" / ".000000000128.safetensors.abc.writing"
    left.touch()  # as by a kill in the midst of writing
    done = run(command("train_grpo", "--resume", folder), maw_gym_home)
    assert done.returncode == 0, done.stderr
    assert not left.exists()
    assert differences(whole, folder) == []
