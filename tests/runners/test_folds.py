"""Folds and balance, from a runner's settings to what is learned from."""

import gzip
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from maw_gym.errors import InputError
from runners.compare import CompareSettings, compare_dataset
from runners.experiments.command_line import changed, made
from runners.experiments.comparison import checked_folds, run_side_by_side
from runners.experiments.methods import check_methods
from runners.experiments.report import group_table
from runners.experiments.settings import TaskSettings
from runners.experiments.training import task_of


def quick(folder: Path, **more: Any) -> CompareSettings:
    """A comparison on the collection in a folder that trains no encoder."""
    return made(
        CompareSettings,
        datasets=(str(folder),),
        baseline="standard-attention",
        encoder="untrained",
        quick=True,
        **more,
    )


def test_every_query_is_a_test_query_once(tiny_folder: Path, tmp_path: Path) -> None:
    settings = quick(tiny_folder, methods=("bm25", "random"), folds=3)
    folds, _ = checked_folds(str(tiny_folder), settings.task.folds)
    assert folds == (0, 1, 2)
    whole = compare_dataset(settings, str(tiny_folder), folds, tmp_path)
    asked = whole.query_ids
    assert sorted(asked) == sorted(f"q{row}" for row in range(24))
    for method in whole.results:
        assert whole.values(method, "nDCG@10").shape == (1, 24)
    (run,) = (tmp_path / "runs").glob("*standard-attention.trec.gz")
    with gzip.open(run, "rt") as lines:
        assert {line.split()[0] for line in lines} == {*asked}


def test_folds_side_by_side_have_the_results_of_one_after_the_other(
    tiny_folder: Path, tmp_path: Path
) -> None:
    settings = quick(tiny_folder, methods=("best-fixed-reward", "random"), folds=2, device="cpu")
    given = str(tiny_folder), (0, 1)
    one = compare_dataset(settings, *given, tmp_path / "one")
    both = compare_dataset(changed(settings, jobs=2), *given, tmp_path / "both")
    assert [*one.results] == [*both.results]
    for name in one.results:
        assert one.scores(name).tolist() == both.scores(name).tolist()
    names = {path.name for path in (tmp_path / "one").rglob("*.*")}
    assert names == {path.name for path in (tmp_path / "both").rglob("*.*")}


def test_processes_end_with_the_one_that_asked_for_them(tmp_path: Path) -> None:
    program = tmp_path / "asks.py"
    program.write_text(
        "import time\n"
        "from runners.experiments.comparison import run_side_by_side\n"
        "if __name__ == '__main__':\n"
        "    run_side_by_side(time.sleep, [(600,), (600,)], 2)\n"
    )
    asks = psutil.Popen([sys.executable, str(program)])
    until = time.monotonic() + 120
    # Two processes, and one that keeps count of what is shared.
    while len(asks.children()) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    asked = asks.children()
    assert len(asked) == 3
    time.sleep(3)  # they begin
    asks.kill()
    asks.wait()
    _, alive = psutil.wait_procs(asked, timeout=60)
    assert alive == []


def test_a_mistake_in_another_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown method 'grp': did you mean 'grpo'"):
        run_side_by_side(check_methods, [(["grpo"],), (["grp"],)], 2)


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^one of 2 processes was ended from outside, perhaps "):
        run_side_by_side(os._exit, [(9,), (9,)], 2)


def test_results_of_each_group_and_with_groups_alike() -> None:
    scores = {"a": np.array([0.1, 0.3, 0.8]), "b": np.array([0.5, 0.5, 0.0])}
    assert group_table(scores, ["numpy", "numpy", "torch"]).splitlines() == [
        "| method | numpy (2) | torch (1) |  alike |",
        "| ---    |      ---: |      ---: |   ---: |",
        "| a      |    0.2000 |    0.8000 | 0.5000 |",
        "| b      |    0.5000 |    0.0000 | 0.2500 |",
    ]


def test_too_many_folds_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="24 judged queries, too few for 13 folds of 2 or more"):
        checked_folds(str(tiny_folder), 13)


def test_balance_wants_groups_before_anything_is_trained(tiny_folder: Path) -> None:
    settings = TaskSettings(dataset=str(tiny_folder), balance=0.5)
    with pytest.raises(InputError, match=r"^balance 0\.5 needs queries in groups, and those of "):
        task_of(settings)
