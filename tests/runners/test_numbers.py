"""Runs whose numbers stop being finite end with a line that says where, and what is left."""

import importlib
import itertools
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO

from agents.grpo import GRPO, losses
from maw_gym import files
from runners.experiments.runs import run_main

# SB3 silences this one when it is imported, which pytest undoes.
pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

QUERIES = r"queries of the batch: q\d+(, q\d+)*( and \d+ more)?"
KINDS = {"train_grpo": "GRPORunSettings", "train_ppo": "PPORunSettings"}


@pytest.fixture
def flags(tiny_folder: Path, tmp_path: Path) -> list[object]:
    return [
        "--dataset", tiny_folder, "--encoder", "untrained", "--observation", "profile",
        "--num-envs", 16, "--n-steps", 8, "--timesteps", 2560, "--device", "cpu",
        "--checkpoint-every", 1, "--logdir", tmp_path, "--run-name", "run",
    ]  # fmt: skip


def told(
    runner: str, flags: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    """What a run says that ends with status 1."""
    monkeypatch.setattr(sys, "argv", [runner, *map(str, flags)])
    module = importlib.import_module(f"runners.{runner}")
    with pytest.raises(SystemExit) as caught:
        run_main(getattr(module, KINDS[runner]), module.main)
    assert caught.value.code == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if not x.endswith(" ..."))
    return str(line)


def test_a_loss_that_is_not_finite(
    flags: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    loss, calls = losses.policy_loss, itertools.count(1)

    def failing(*arguments):
        return loss(*arguments) * (math.nan if next(calls) == 6 else 1.0)

    monkeypatch.setattr(losses, "policy_loss", failing)
    whole = ["--n-epochs", 1, "--batch-size", "None"]  # one loss for each rollout
    line = told("train_grpo", [*flags, *whole], monkeypatch, capsys)
    # The sixth rollout of 128 steps fails; checkpoints are written before each but the first.
    last = tmp_path / "run" / "checkpoints" / "000000000640.safetensors"
    assert re.fullmatch(
        rf"error: train/policy_loss is nan at step 768: .*; {QUERIES}; the last good checkpoint is"
        rf" {last}",
        line,
    )
    assert sorted(last.parent.iterdir())[-1] == last
    tensors = files.read(last, "checkpoint").tensors
    numbers = [value for value in tensors.values() if value.is_floating_point()]
    assert all(value.isfinite().all() for value in numbers)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(("runner", "algorithm"), [("train_grpo", GRPO), ("train_ppo", PPO)])
def test_logits_that_are_not_finite(
    runner: str,
    algorithm: type,
    flags: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """Weights may be finite, and what they multiply to not."""

    def exploding(self) -> None:
        with torch.no_grad():
            for weight in self.policy.parameters():
                weight.fill_(1e30)

    monkeypatch.setattr(algorithm, "train", exploding)
    line = told(runner, flags, monkeypatch, capsys)
    assert re.fullmatch(
        rf"error: the policy's logits are not finite, at step 128; {QUERIES}; the last good"
        r" checkpoint was not written yet",
        line,
    )
