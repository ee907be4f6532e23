"""Trying out GRPO's settings on a tiny collection."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maw_gym.errors import InputError
from runners import ablate
from runners.ablate import VARIANTS, AblateSettings
from runners.experiments.command_line import changed, made
from runners.experiments.settings import GRPOSpec


def test_variants_are_settings_of_grpo() -> None:
    for variant in VARIANTS.values():
        made(AblateSettings).spec(variant, 0)
    assert made(AblateSettings).spec({}, 0) == GRPOSpec()


def test_leaves_a_report(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    some = ("defaults", "observation: profile", "kl: none")
    monkeypatch.setattr(ablate, "VARIANTS", {name: VARIANTS[name] for name in some})
    settings = made(AblateSettings,
        dataset=str(tiny_folder), encoder="untrained", seeds=(0, 1), timesteps=512, device="cpu",
        logdir=tmp_path, run_name="one",
    )  # fmt: skip
    ablate.main(settings)
    variants = json.loads((tmp_path / "one" / "metrics.json").read_text())["variants"]
    # The profile is what GRPO observes anyway.
    assert list(variants) == ["defaults", "kl: none"]
    assert len(variants["defaults"]["gap_closed"]) == 2
    report = (tmp_path / "one" / "report.md").read_text()
    assert report.splitlines()[0].startswith("| GRPO with")
    assert report in capsys.readouterr().out
    # Going on trains nothing again; a result that is lost, or of another default, is.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "cells").iterdir()}
    (lost,) = (path for path in kept if path.match("*.kl--none.seed1.*.json"))
    lost.unlink()
    ablate.main(changed(settings, resume=tmp_path / "one"))
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "cells").iterdir()}
    assert now.keys() == kept.keys()
    assert {path for path in kept if now[path] != kept[path]} == {lost}
    assert (tmp_path / "one" / "report.md").read_text() == report


def test_table() -> None:
    base = {"gap_closed": [0.25, 0.75], "reward": np.full(4, 0.5), "nDCG@10": np.zeros(4)}
    other = {"gap_closed": [None, 1.0], "reward": np.full(4, 0.5), "nDCG@10": np.full(4, 0.1)}
    lines = ablate.table({"defaults": base, "other": other}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert cells[0] == ["defaults", "0.500", "0.5000", "-", "0.0000", "-", "-"]
    # All four differences are .1: of 16 signs two are as far out.
    assert cells[1] == ["other", "1.000", "0.5000", "1.0000", "0.1000", "+0.1000", ".1250"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "seeds: tuple should have at least 1 item"),
        ({"seeds": (1, 1)}, "seeds must differ, got 1 1"),
        ({"timesteps": 0}, "timesteps must be at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(AblateSettings, **settings)
