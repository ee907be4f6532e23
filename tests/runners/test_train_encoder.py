"""Training an encoder, as its script does, on a tiny collection."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_collection import write_tiny_collection

from maw_gym.corpora import splits
from maw_gym.encoders.files import load_embedder
from maw_gym.encoders.training import selection
from runners.experiments.command_line import made
from runners.train_encoder import EncoderRunSettings, main


def test_leaves_an_encoder_and_what_it_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(splits, "ENCODER_MINIMUM", 0)  # the tiny collection trains an encoder
    # Without pydocs, which takes long to train on, and whatever the scores.
    monkeypatch.setattr(selection, "_candidates", lambda collection: {"own pairs": [collection]})
    scores = {"untrained": np.array([0.5, 0.4]), "own pairs": np.array([1.0, 0.8])}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    settings = made(EncoderRunSettings,
        dataset=str(write_tiny_collection(tmp_path / "data")), epochs=1, depth_epochs=1,
        batch_size=4, device="cpu", logdir=tmp_path, run_name="one",
    )  # fmt: skip
    main(settings)
    run = tmp_path / "one"
    assert {path.name for path in run.iterdir()} >= {
        "config.json", "encoder.safetensors", "metrics.json",
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["learner"] == "encoder"
    assert config["settings"]["depth_epochs"] == 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["encoder"]["chosen"] == "own pairs"
    assert metrics["encoder"]["training"]["settings"]["batch_size"] == 4
    assert {"mean pooling", "zero-shot NON-MAW", "standard attention"} <= set(metrics["baselines"])
    embedder, _ = load_embedder(run / "encoder.safetensors")
    assert embedder.maw.depths == 32
    shown = capsys.readouterr().out
    assert "| standard attention " in shown
    assert f"encoder: own pairs; give others {run / 'encoder.safetensors'}" in shown
