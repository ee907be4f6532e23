"""Folds and balance, from a runner's settings to what is learned from."""

from pathlib import Path

import numpy as np
import pytest

from maw_gym.errors import InputError
from runners.experiments.comparison import run_dataset
from runners.experiments.comparison_settings import CompareSettings
from runners.experiments.fields import checked_field
from runners.experiments.settings import DataSettings
from runners.experiments.tables import group_table
from runners.experiments.tasks import task_of


def test_every_query_is_a_test_query_once(tiny_folder: Path, tmp_path: Path) -> None:
    settings = CompareSettings(
        datasets=(str(tiny_folder),),
        methods=("bm25", "random"),
        baseline="standard-attention",
        encoder="untrained",
        quick=True,
        folds=3,
    )
    field = checked_field(str(tiny_folder), settings.folds)
    assert field.folds == (0, 1, 2)
    outcome = run_dataset(field, settings, tmp_path)
    asked = [name for fold in outcome.references for name in fold.query_ids]
    assert sorted(asked) == sorted(f"q{row}" for row in range(24))
    for results in outcome.results:
        assert results.measure("nDCG@10").shape == (1, 24)
    lines = (tmp_path / "runs").glob("*standard-attention.trec")
    assert {line.split()[0] for path in lines for line in path.read_text().splitlines()} == {*asked}


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
        checked_field(str(tiny_folder), 13)


def test_balance_wants_groups_before_anything_is_trained(tiny_folder: Path) -> None:
    settings = DataSettings(dataset=str(tiny_folder), balance=0.5)
    with pytest.raises(InputError, match=r"^balance 0\.5 needs queries in groups, and those of "):
        task_of(settings)
