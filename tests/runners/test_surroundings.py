"""Runs whose surroundings fail: closed and full streams, odd names, a broken matplotlib."""

import json
import os
import subprocess
import sys


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


def test_a_broken_matplotlib_is_one_line_before_the_work(tmp_path, run_python, monkeypatch):
    """A setting file that is no text; what draws is imported when it draws."""
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe backend")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    said = run_python(f"""
import sys
from maw_gym.runners.cli import COMMANDS, main
sys.stderr = sys.stdout
for command in COMMANDS:
    if command not in ("evaluate", "benchmark", "report", "search"):
        try:
            main([*command.split(), "--logdir", {str(tmp_path / "runs")!r}])
        except SystemExit as end:
            assert end.code == 2
""")
    lines = [line for line in said.splitlines() if line.startswith("error")]
    assert len(lines) == 7
    for line in lines:
        assert line.startswith("error: matplotlib cannot be imported (")
        assert line.endswith("mend its matplotlibrc or unset MPLBACKEND")
    assert not (tmp_path / "runs").exists()
