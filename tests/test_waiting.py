"""Threads wait asleep, unless something else is asked for."""

import os
import subprocess
import sys

import pytest

from maw_gym.waiting import wait_asleep


def test_asleep_where_nothing_else_is_asked_for() -> None:
    environment: dict[str, str] = {}
    wait_asleep(environment, torch_is_loaded=False)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_is_asked_for_stays(name: str) -> None:
    environment = {name: "own"}
    wait_asleep(environment, torch_is_loaded=False)
    assert environment == {name: "own"}


def test_too_late_after_torch() -> None:
    environment: dict[str, str] = {}
    wait_asleep(environment, torch_is_loaded=True)
    assert environment == {}


def test_importing_maw_gym_asks_before_torch_is_loaded() -> None:
    kept = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    code = "import maw_gym, os; print(os.environ.get('OMP_WAIT_POLICY'))"
    found = []
    for first in ("", "import torch; "):
        command = [sys.executable, "-c", first + code]
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=True)
        found.append(done.stdout.strip())
    assert found == ["PASSIVE", "None"]


def test_the_measurement_has_a_line_for_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    from runners.benchmarks import waiting

    waiting.main(budget=0.01, most=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("1.00, 1.00")
    assert all(line.startswith("   0  ") for line in lines[1:])
