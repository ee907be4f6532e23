"""Whose a run's folder is, and what is left of a run that was refused."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agents.grpo import grpo
from maw_gym import files
from maw_gym.errors import InputError
from runners import train_grpo
from runners.experiments import runs
from runners.experiments.command_line import made
from runners.experiments.runs import (
    open_run,
    read_config,
    settings_of,
    writable_output,
    write_config,
)
from runners.experiments.settings import FolderSettings, RunSettings
from runners.train_grpo import GRPORunSettings
from runners.train_supervised import SupervisedRunSettings


@pytest.fixture(autouse=True)
def nothing_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_claimed", {})


def test_of_runs_that_start_at_once_one_has_the_name(tmp_path: Path) -> None:
    def start(_: int) -> str:
        try:
            return open_run(FolderSettings(logdir=tmp_path, run_name="one"), "run").name
        except InputError as refused:
            return str(refused)

    with ThreadPoolExecutor(8) as pool:
        ends = sorted(pool.map(start, range(8)))
    taken = f"run '{tmp_path / 'one'}' exists; choose another --run-name"
    assert ends == ["one", *[taken] * 7]


def test_runs_without_a_name_take_the_next_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.time, "strftime", lambda form: "20260102-030405")
    settings = FolderSettings(logdir=tmp_path)
    names = [open_run(settings, "grpo-a/b-seed0").name for _ in range(3)]
    first = "grpo-a-b-seed0-20260102-030405"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_a_refused_run_gives_its_name_back(tmp_path: Path) -> None:
    settings = RunSettings(logdir=tmp_path, run_name="one")
    folder = open_run(settings, "run")
    assert json.loads((folder / "config.json").read_text())["learner"] is None
    runs._give_back()
    assert list(tmp_path.iterdir()) == []
    # One that has begun keeps it.
    write_config(open_run(settings, "run"), "GRPO", settings, {}, {})
    runs._give_back()
    assert json.loads((folder / "config.json").read_text())["learner"] == "GRPO"


def test_a_rollout_too_large_for_the_machine_leaves_no_folder(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The algorithm refuses it, when data and encoder are known and the run has begun."""
    monkeypatch.setattr(grpo, "_memory", lambda: 1e-6)
    settings = made(
        GRPORunSettings,
        dataset=str(tiny_folder),
        encoder="untrained",
        logdir=tmp_path,
        num_envs=64,
        n_steps=16,
    )
    with pytest.raises(InputError, match=r"n_steps=16: rollouts of 64 environments with .* need"):
        train_grpo.main(settings)
    left = {path.name for folder in tmp_path.iterdir() for path in folder.iterdir()}
    assert left == {"config.json", ".lock"}
    with pytest.raises(SystemExit):
        runs._quit("what the exception says", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_keeps_what_it_has_made(tmp_path: Path) -> None:
    settings = RunSettings(logdir=tmp_path, run_name="one")
    folder = open_run(settings, "run")
    write_config(folder, "GRPO", settings, {}, {})
    (folder / "events").touch()
    runs._give_back(refused=True)
    assert {path.name for path in folder.iterdir()} == {"config.json", "events"}


def test_a_run_killed_before_it_began_can_go_on(tmp_path: Path) -> None:
    folder = open_run(
        made(SupervisedRunSettings, logdir=tmp_path, run_name="one", epochs=3, dataset="cranfield"),
        "run",
    )
    settings = settings_of(SupervisedRunSettings, {"resume": str(folder), "epochs": "3"})
    assert (settings.spec.learner.epochs, settings.spec.task.dataset, settings.run.resume) == (
        3,
        "cranfield",
        folder,
    )
    write_config(folder, "supervised-oracle", settings, {"content": "x"}, {})
    assert read_config(folder)["dataset"] == {"content": "x"}
    with pytest.raises(InputError, match=r"the dataset of run '.*' has changed since it began"):
        write_config(folder, "supervised-oracle", settings, {"content": "y"}, {})
    with pytest.raises(InputError, match="--epochs 4 conflicts with the run's own 3; leave the"):
        settings_of(SupervisedRunSettings, {"resume": str(folder), "epochs": "4"})


def test_a_run_without_a_newer_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    folder = open_run(made(SupervisedRunSettings, logdir=tmp_path, run_name="one", epochs=3), "run")
    config = json.loads((folder / "config.json").read_text())
    del config["settings"]["negatives"]
    (folder / "config.json").write_text(json.dumps(config))
    settings = settings_of(SupervisedRunSettings, {"resume": str(folder)})
    assert (settings.spec.learner.epochs, settings.spec.learner.negatives) == (3, 1024)
    config["settings"]["colour"] = "red"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="of another runner or version: setting 'colour' is unk"):
        settings_of(SupervisedRunSettings, {"resume": str(folder)})


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    folder = open_run(RunSettings(logdir=tmp_path, run_name="one"), "run")
    go_on = (
        "from pathlib import Path; from runners.experiments.runs import open_run;"
        "from runners.experiments.settings import RunSettings;"
        f"open_run(RunSettings(resume=Path({str(folder)!r})), 'run'); print('mine')"
    )
    while_it_runs = subprocess.run([sys.executable, "-c", go_on], capture_output=True, text=True)
    assert f"run {str(folder)!r} is being written by another process" in while_it_runs.stderr
    assert open_run(RunSettings(resume=folder), "run") == folder  # this one
    files.let_go(folder)  # as the end of the process does
    after = subprocess.run([sys.executable, "-c", go_on], capture_output=True, text=True)
    assert after.stdout == "mine\n"


def test_a_swarm_of_files_that_are_no_config(tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            read_config(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for name, content in (("deep", "[" * 100_000 + "]" * 100_000), ("list", "[1]"), ("none", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    assert "is not JSON (recursion limit exceeded" in refused(tmp_path / "deep")
    assert "is not a run's config.json" in refused(tmp_path / "list")
    assert "is not JSON (EOF" in refused(tmp_path / "none")
    for name in ("pipe", "huge", "device"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    with (tmp_path / "huge" / "config.json").open("wb") as file:
        file.truncate(2**33)  # 8 GB, of which nothing is on the disk
    (tmp_path / "device" / "config.json").symlink_to("/dev/zero")
    for name in ("pipe", "huge", "device"):
        assert "is not a run's: no file, or too large" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("reward_weights", None, "reward_weights must be a valid tuple, got None"),
        ("reward_weights", 3, "reward_weights must be a valid tuple, got 3"),
        ("epochs", "seven", "epochs must be a valid integer, got 'seven'"),
        ("observation", "profile", "observation must be a valid tuple, got 'profile'"),
        ("labels", "\x1b[2J", r"labels must be 'rule' or 'oracle', got '\\x1b\[2J'"),
    ],
)
def test_a_config_whose_values_are_of_another_type(
    setting: str, value: object, message: str, tmp_path: Path
) -> None:
    folder = open_run(made(SupervisedRunSettings, logdir=tmp_path, run_name="one"), "run")
    config = json.loads((folder / "config.json").read_text())
    config["settings"][setting] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"impossible settings .{message}.$"):
        settings_of(SupervisedRunSettings, {"resume": str(folder)})


def test_where_numbers_can_be_written_to(tmp_path: Path) -> None:
    assert writable_output(tmp_path / "new" / "numbers.json") == tmp_path / "new" / "numbers.json"
    (tmp_path / "kept.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "kept.json")
    assert writable_output(tmp_path / "link.json") == tmp_path / "kept.json"
    for path, message in (
        (tmp_path, "is no ordinary file"),
        (Path("/dev/null"), "is no ordinary file"),
        (tmp_path / ("n" * 250), "is too long"),
        (tmp_path / "kept.json" / "numbers.json", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            writable_output(path)


def test_a_log_folder_that_is_not_utf8(tmp_path: Path) -> None:
    logdir = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xffns"))
    with pytest.raises(InputError, match="has characters that TensorBoard cannot write"):
        open_run(FolderSettings(logdir=logdir), "run")
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_that_is_not_known() -> None:
    for setting in ("logdir", "resume", "encoder"):
        with pytest.raises(InputError, match="no home folder is known for '~nosuchuser/x'"):
            made(SupervisedRunSettings, **{setting: "~nosuchuser/x"})
    assert FolderSettings(logdir="~/runs").logdir == Path.home() / "runs"


def no_thread(settings: RunSettings) -> None:
    raise RuntimeError("can't start new thread")


def test_a_limit_on_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        runs.run_main(RunSettings, no_thread, [])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: the memory is not enough; lower --num-envs, --n-steps or the batch size\n"
    )
