"""Runners over a transformer that lies in a folder, and what they leave without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maw_gym.routers.routed_encoder import RoutedEncoder


def run(runner: str, home: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", f"runners.{runner}", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MAW_GYM_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def beside(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transformer_runs")


@pytest.fixture(scope="module")
def folder(beside: Path, tiny_folder: Path, tiny_transformer: Path) -> Path:
    """The run of a learner over a model that is gone by now."""
    model = shutil.copytree(tiny_transformer, beside / "model")
    done = run(
        "train_supervised", beside / "home", "--dataset", tiny_folder, "--encoder", "untrained",
        "--text-encoder", model, "--labels", "rule", "--epochs", 1, "--device", "cpu",
        "--logdir", beside, "--run-name", "one",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| zero-shot NON-MAW " in done.stdout
    shutil.rmtree(model)
    return beside / "one"


def test_the_run_names_its_text_encoder(folder: Path, beside: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings["text_encoder"] == str(beside / "model")
    assert settings["train_text_encoder"] is False


def test_the_run_is_a_retriever_without_the_models_folder(folder: Path) -> None:
    encoder = RoutedEncoder.from_run(folder, "cpu")
    assert encoder.embedder.text.width == 24
    encoder.index(["a", "b"], ["bees make honey", "the moon and the tide"])
    assert {found["id"] for found in encoder.search("honey", k=2)} == {"a", "b"}


def test_it_is_evaluated_without_it(folder: Path, beside: Path, tiny_folder: Path) -> None:
    done = run(
        "evaluate", beside / "home", "--run", folder, "--dataset", tiny_folder, "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runner", ["train_grpo", "train_encoder", "compare"])
def test_a_model_that_is_not_there_ends_every_runner(
    runner: str, beside: Path, tiny_folder: Path
) -> None:
    done = run(
        runner, beside / "home", "--dataset", tiny_folder, "--device", "cpu", "--logdir",
        beside, "--text-encoder", "./nowhere",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: text encoder './nowhere' is no folder; ")
    assert "Traceback" not in done.stderr
