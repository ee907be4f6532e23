"""Runs whose surroundings fail: closed and full streams, odd names, a broken matplotlib."""

import json
import os
import subprocess
import sys
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
