"""Whose a run's folder is, how one goes on, and runs whose surroundings fail."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from killing import start

from maw_gym.errors import InputError
from maw_gym.files import let_go
from maw_gym.run import Run
from maw_gym.runners.compare import CompareSettings
from maw_gym.runners.experiments.command_line import changed, made
from maw_gym.runners.experiments.runs import (
    StopRequest,
    open_run,
    run_main,
    settings_of,
    write_config,
)
from maw_gym.runners.experiments.settings import FolderSettings, RunSettings
from maw_gym.runners.train_supervised import SupervisedRunSettings


def test_of_runs_that_start_at_once_one_has_the_name(tmp_path):
    def start(_):
        try:
            return open_run(FolderSettings(logdir=tmp_path, run_name="one"), "run").name
        except InputError as refused:
            return str(refused)

    with ThreadPoolExecutor(8) as pool:
        ends = sorted(pool.map(start, range(8)))
    taken = f"run '{tmp_path / 'one'}' exists; choose another --run-name"
    assert ends == ["one", *[taken] * 7]


def test_runs_without_a_name_take_the_next_free_one(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260102-030405")
    names = [open_run(FolderSettings(logdir=tmp_path), "grpo-a/b-seed0").name for _ in range(3)]
    first = "grpo-a-b-seed0-20260102-030405"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_a_run_that_fails_keeps_what_it_has_made(tmp_path, capsys):
    def failing(settings):
        (open_run(settings, "run") / "events").touch()
        raise MemoryError

    with pytest.raises(SystemExit) as end:
        run_main(RunSettings, failing, ["--logdir", str(tmp_path), "--run-name", "one"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: the memory is not enough; lower --num-envs, --n-steps or the batch size\n"
    )
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"config.json", "events"}


def test_one_process_at_a_time_works_on_a_run(tiny_folder, tmp_path, maw_gym_home):
    task = {"dataset": str(tiny_folder), "encoder": "untrained", "epochs": 1}
    folder = open_run(made(SupervisedRunSettings, task, logdir=tmp_path), "run")
    status, _, told = start("train supervised", "--resume", folder, home=maw_gym_home).ended()
    what = f"run {str(folder)!r} is being written by another process; wait for it, or stop it"
    assert (status, told) == (2, f"error: {what}\n")
    let_go(folder)
    assert open_run(RunSettings(resume=folder), "run") == folder
    let_go(folder)


def test_the_first_signal_is_noted_and_the_second_ends_the_run_at_once():
    stop, noted = StopRequest(), []

    def work():
        with stop.deferred():
            stop.handle(signal.SIGINT, None)
            noted.append(stop.asked())
            stop.handle(signal.SIGTERM, None)
            noted.append("went on")

    with pytest.raises(KeyboardInterrupt) as end:
        work()
    assert (noted, end.value.args) == ([True], ("stopped by SIGINT", 130))


def test_a_run_killed_before_it_began_can_go_on(tmp_path):
    begun = made(SupervisedRunSettings, logdir=tmp_path, epochs=3, dataset="cranfield")
    folder = open_run(begun, "run")
    config = json.loads((folder / "config.json").read_text())
    del config["settings"]["negatives"]
    (folder / "config.json").write_text(json.dumps(config))
    settings = settings_of(SupervisedRunSettings, {"resume": str(folder), "epochs": "3"})
    assert (settings.spec.learner.epochs, settings.spec.task.dataset) == (3, "cranfield")
    assert settings.spec.learner.negatives == 1024  # a setting newer than the run has its default
    assert settings.run.resume == folder
    write_config(folder, "supervised-oracle", settings, {"content": "x"}, {})
    assert Run(folder).config["dataset"] == {"content": "x"}
    for learner, content, message in (
        ("supervised-oracle", "y", "the dataset of run '.*' has changed since it began"),
        ("supervised-rule", "x", "run '.*' is one of 'supervised-oracle', not of 'supervised-rul"),
    ):
        with pytest.raises(InputError, match=message):
            write_config(folder, learner, settings, {"content": content}, {})
    with pytest.raises(InputError, match="--epochs 4 conflicts with the run's own 3; leave the"):
        settings_of(SupervisedRunSettings, {"resume": str(folder), "epochs": "4"})


def test_settings_from_a_file_give_way_to_flags(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("dataset: cranfield\nlearning-rate: 1e-5\nreward_weights: [0, 0, 1]\n")
    first = settings_of(SupervisedRunSettings, {"config": str(file), "dataset": "vaswani"})
    assert (first.spec.task.dataset, first.spec.learner.learning_rate) == ("vaswani", 1e-5)
    assert first.spec.task.reward_weights == (0.0, 0.0, 1.0)
    assert changed(first, logdir="~/runs").run.logdir == Path.home() / "runs"
    # A run's own config.json makes the same run, in another place.
    folder = open_run(changed(first, logdir=tmp_path, run_name="one"), "run")
    second = settings_of(SupervisedRunSettings, {"config": str(folder / "config.json")})
    assert second.spec == first.spec
    assert (second.run.run_name, second.run.logdir) == (None, Path("runs"))
    file.write_text("dataset: [cranfield, vaswani]\nmethods: random\nseeds: 3\nencoder_seeds: null")
    one = settings_of(CompareSettings, {"config": file})
    assert one.datasets == ("cranfield", "vaswani")
    assert (one.methods, one.seeds) == (("random",), (3,))  # of a list, as behind a flag


def test_nobody_reads_and_nothing_can_be_told(tiny_folder, tmp_path):
    """Standard output closed, standard error full, both ASCII; no git."""
    reader, writer = os.pipe()
    os.close(reader)
    words = ["--dataset", tiny_folder, "--encoder", "untrained", "--epochs", 1, "--device", "cpu"]
    words += ["--logdir", tmp_path, "--run-name", "grün"]
    encoded = [os.fsencode(str(word)) for word in words]
    streams = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PATH": "", "OMP_NUM_THREADS": "1"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "maw_gym.runners.train_supervised", *encoded],
            env=os.environ | streams,
            stdout=writer,
            stderr=full,
            check=False,
        )
    os.close(writer)
    assert done.returncode == 0
    metrics = json.loads((tmp_path / "grün" / "metrics.json").read_text())
    assert metrics["training"]["best_epoch"] == 1


def test_a_broken_matplotlib_is_one_line_before_the_work(
    tiny_folder, tmp_path, run_python, monkeypatch
):
    """A setting file that is no text; what draws is imported when it draws."""
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe backend")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    said = run_python(f"""
import sys
from maw_gym.runners.cli import COMMANDS, main
sys.stderr = sys.stdout
for command in COMMANDS:
    if command not in ("evaluate", "benchmark", "report", "search"):
        data = [] if command == "bandits" else ["--dataset", {str(tiny_folder)!r}]
        try:
            main([*command.split(), *data, "--logdir", {str(tmp_path / "runs")!r}])
        except SystemExit as end:
            assert end.code == 2
""")
    lines = [line for line in said.splitlines() if line.startswith("error")]
    assert len(lines) == 7
    for line in lines:
        assert line.startswith("error: matplotlib cannot be imported (")
        assert line.endswith("mend its matplotlibrc or unset MPLBACKEND")
    assert not (tmp_path / "runs").exists()
