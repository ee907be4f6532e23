"""Real runs, killed, stopped and resumed, on a tiny collection."""

import random
import shutil
import signal

import pytest
from killing import differences, kill_until_done, metrics, run, scalars, start, stopped

from maw_gym.errors import InputError
from maw_gym.runners.experiments.runs import settings_of
from maw_gym.runners.train_supervised import SupervisedRunSettings


@pytest.fixture(scope="module")
def arguments(tiny_folder):
    return [
        "--dataset", tiny_folder, "--encoder", "untrained", "--observation", "profile",
        "--timesteps", 3200, "--num-envs", 16, "--n-steps", 8, "--checkpoint-every", 2,
        "--batch-size", 32, "--evaluations", 3, "--device", "cpu",  # in an order that is drawn
    ]  # fmt: skip


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(arguments, logdir, maw_gym_home):
    """A run of GRPO that nobody disturbed."""
    run("train grpo", *arguments, "--logdir", logdir, "--run-name", "whole", home=maw_gym_home)
    return logdir / "whole"


def test_tensorboard_shows_every_step_once_and_two_checkpoints_are_kept(whole):
    curves, rollouts = scalars(whole), list(range(128, 3201, 128))
    assert [step for step, _ in curves["rollout/ep_rew_mean"]] == rollouts
    # What an update records is written after the next rollout.
    assert [step for step, _ in curves["train/loss"]] == rollouts[1:]
    # 25 rollouts, 3 evaluations asked for: every 8th, and the end.
    assert [step for step, _ in curves["eval/reward"]] == [0, 1024, 2048, 3072, 3200]
    # Before rollouts 3, 5, ... of 128 steps, and at the end.
    names = sorted(path.stem for path in (whole / "checkpoints").iterdir())
    assert names == ["000000003072", "000000003200"]


def test_killed_runs_end_like_the_whole_one(whole, arguments, logdir, maw_gym_home):
    told = kill_until_done(
        "train grpo", arguments, logdir, "killed", maw_gym_home, random.Random(5), 2, 0.8
    )
    assert "-> -9" in told[0], told
    assert differences(whole, logdir / "killed") == [], told


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(whole, arguments, logdir, maw_gym_home):
    folder = logdir / "stopped"
    # Every checkpoint but the one of the signal is out of reach.
    words = [*arguments, "--checkpoint-every", 1000, "--logdir", logdir, "--run-name", "stopped"]
    begun = start("train grpo", *words, home=maw_gym_home)
    status, told = stopped(begun, folder / "events*", 0.1, signal.SIGTERM)
    assert status == 143
    assert told[-1] == f"error: stopped by SIGTERM; go on with --resume {folder}"
    (written,) = (folder / "checkpoints").iterdir()
    assert int(written.stem) < 3200
    left = folder / "checkpoints" / ".000000000128.safetensors.abc.writing"
    left.touch()  # as by a kill in the midst of writing
    run("train grpo", "--resume", folder, home=maw_gym_home)
    assert not left.exists()
    assert differences(whole, folder) == []


def test_a_killed_supervised_run_ends_like_the_whole_one(tiny_folder, tmp_path, maw_gym_home):
    words = ["--dataset", tiny_folder, "--encoder", "untrained", "--device", "cpu", "--epochs", 60]
    words += ["--logdir", tmp_path, "--run-name"]
    run("train supervised", *words, "whole", home=maw_gym_home)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    checkpoint = killed / "router.checkpoints"
    begun = start("train supervised", *words, "killed", home=maw_gym_home)
    status, _ = stopped(begun, checkpoint, 0.1, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (killed / "metrics.json").exists()

    run("train supervised", "--resume", killed, home=maw_gym_home)
    assert differences(whole, killed) == []
    assert len(scalars(killed)["train/loss"]) == 60
    assert not [path for path in killed.iterdir() if "checkpoint" in path.name]
    with pytest.raises(InputError, match="is finished; there is nothing to go on with"):
        settings_of(SupervisedRunSettings, {"resume": str(killed)})


def test_two_runs_at_once_on_cold_caches_and_a_third_on_warm_ones(
    maw_gym_home, arguments, tmp_path
):
    home = tmp_path / "home"
    for made in maw_gym_home.glob("pydocs"):  # in a minute
        shutil.copytree(made, home / "pydocs")
    words = [*arguments, "--timesteps", 256, "--logdir", tmp_path, "--run-name"]
    both = [start("train grpo", *words, name, home=home) for name in ("one", "other")]
    for one in both:
        status, _, told = one.ended()
        assert status == 0, told

    def cached():
        files = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]
        kept = [path for path in files if path.parent.parent.name != "streams"]
        return {path: path.stat().st_mtime_ns for path in kept}

    files = cached()
    assert {"documents", "tables", "rows"} <= {path.parent.name for path in files}
    # Nothing half written, nothing left over from the building.
    assert all(path.suffix in (".safetensors", ".json", ".gz", ".npy") for path in files), files
    # A report reads the rows that need no training, whatever is trained.
    run("train grpo", *words, "third", "--n-epochs", 1, home=home)
    assert cached() == files
    first, other, third = (metrics(tmp_path / name) for name in ("one", "other", "third"))
    assert first == other
    assert first["baselines"] == third["baselines"]
