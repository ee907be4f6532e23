"""Trying out GRPO's settings on a tiny collection."""

import json

import numpy as np
import pytest

from maw_gym.agents.grpo.settings import GRPOSettings
from maw_gym.runners import ablate
from maw_gym.runners.ablate import VARIANTS, AblateSettings
from maw_gym.runners.experiments.command_line import changed, made
from maw_gym.runners.experiments.result import Result
from maw_gym.runners.experiments.settings import Spec
from maw_gym.tables.task import load_task


def test_variants_are_settings_of_grpo():
    specs = [made(AblateSettings).spec(name) for name in VARIANTS]
    assert specs[0] == Spec(learner=GRPOSettings())
    assert len(set(map(str, specs))) == len(specs)


def test_leaves_a_report(tiny_folder, tmp_path, monkeypatch, capsys):
    some = ("defaults", "reward: alignment alone")
    monkeypatch.setattr(ablate, "VARIANTS", {name: VARIANTS[name] for name in some})
    settings = made(
        AblateSettings, dataset=str(tiny_folder), encoder="untrained", seeds=(0, 1), timesteps=256,
        device="cpu", logdir=tmp_path, run_name="one",
    )  # fmt: skip
    ablate.main(settings)
    run = tmp_path / "one"
    rows = {row["method"]: row for row in json.loads((run / "results.json").read_text())}
    assert tuple(rows) == some
    assert " minus defaults |" in capsys.readouterr().out
    # Both are judged by the default reward, whatever they learned from.
    table = load_task(str(tiny_folder), "untrained", "cpu").table("test")
    reward = 0.3 * table.entropy + 0.3 * table.focus + 0.4 * table.ndcg  # (7, 32)
    cells = [Result.load(path) for path in (run / "cells").glob("*.reward-*.json")]
    depths = np.array([cell.depths for cell in cells])  # (2, 7)
    assert rows["reward: alignment alone"]["reward"]["mean"] == pytest.approx(
        np.take_along_axis(reward.T, depths, 0).mean(), abs=1e-6
    )
    assert {cell.history for cell in cells} == {None}
    # Going on trains nothing again.
    kept = {path: path.stat().st_mtime_ns for path in (run / "cells").iterdir()}
    ablate.main(changed(settings, resume=run))
    assert {path: path.stat().st_mtime_ns for path in (run / "cells").iterdir()} == kept
