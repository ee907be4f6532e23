"""Runs whose surroundings fail: closed and full streams, odd names, a broken matplotlib."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def popen(
    arguments: list[object], environment: dict[str, str], **streams: Any
) -> "subprocess.Popen[bytes]":
    words = [os.fsencode(str(argument)) for argument in arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "runners.train_supervised", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        **streams,
    )


@pytest.fixture
def flags(tiny_folder: Path) -> list[object]:
    return ["--dataset", tiny_folder, "--encoder", "untrained", "--epochs", 1, "--device", "cpu"]


def test_nobody_reads_and_nothing_can_be_told(flags: list[object], tmp_path: Path) -> None:
    """Standard output closed, standard error full, both ASCII; no git."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        process = popen(
            [*flags, "--logdir", tmp_path, "--run-name", "grün"],
            {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PATH": ""},
            stdout=writer,
            stderr=full,
        )
        os.close(writer)
        assert process.wait(timeout=250) == 0
    metrics = json.loads((tmp_path / "grün" / "metrics.json").read_text())
    assert metrics["training"]["best_epoch"] == 1


def test_characters_that_cannot_be_shown_are_escaped(flags: list[object], tmp_path: Path) -> None:
    process = popen(
        [*flags, "--logdir", tmp_path, "--run-name", "grün"],
        {"PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert b"gr\\xfcn" in out


def test_a_broken_matplotlib_is_one_line(flags: list[object], tmp_path: Path) -> None:
    process = popen(
        [*flags, "--logdir", tmp_path / "runs"],
        {"MPLBACKEND": "nosuch"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=250)
    assert process.returncode == 2
    assert out == b""
    (line,) = err.decode().splitlines()
    assert line.startswith("error: matplotlib cannot be imported (")
    assert line.endswith("mend its matplotlibrc or unset MPLBACKEND")
    assert not (tmp_path / "runs").exists()


def test_what_draws_is_imported_when_it_draws(
    tmp_path: Path, run_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting file that is no text, as `compare` and `bandits` meet it before their work."""
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe backend")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    out = run_python(f"""
from pathlib import Path
from maw_gym.errors import InputError
from runners import ablate, bandits, benchmark, compare, evaluate, report
from runners import train_encoder, train_grpo, train_ppo, train_supervised
for settings, main in (
    (bandits.BanditSettings, bandits.main), (compare.CompareSettings, compare.main)
):
    try:
        main(settings(logdir=Path({str(tmp_path / "runs")!r})))
    except InputError as error:
        print(error)
""")
    lines = out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("matplotlib cannot be imported (")
        assert line.endswith("mend its matplotlibrc or unset MPLBACKEND")
    assert not (tmp_path / "runs").exists()
