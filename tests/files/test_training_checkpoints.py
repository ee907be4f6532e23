"""A training of an encoder that is killed and resumed ends with the same weights."""

import numpy as np
import pytest
import torch

from maw_gym.encoders.training import selection, stages
from maw_gym.encoders.training.selection import trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation

# 10 pairs in batches of 4: 3 steps an epoch.
SETTINGS = TrainingSettings(epochs=2, depth_epochs=2, batch_size=4, train_text_encoder=True)


def test_killed_in_both_stages_and_resumed(tiny, tmp_path, monkeypatch):
    steps = []
    for name in ("batch_loss", "depth_loss"):
        loss = getattr(stages, name)
        monkeypatch.setattr(stages, name, lambda *of, loss=loss: steps.append(1) or loss(*of))
    monkeypatch.setattr(selection, "_candidates", lambda one, text: {"own pairs": [one]})
    scores = {"untrained": np.array([0.5, 0.4]), "own pairs": np.array([1.0, 0.8])}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)

    def train(*scores):
        """What each look at the validation queries finds; at one look more the process ends."""
        left = iter(scores)
        monkeypatch.setattr(Validation, "score", lambda *_: float(next(left)))
        return trained_embedder(tiny, "cpu", SETTINGS)

    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "whole"))
    # In each stage before training, and after epochs 1 and 2.
    whole, about = train(0, 1, 2, 0, 1, 2)
    assert len(steps) == 12
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "stopped"))
    encoders = tmp_path / "stopped" / "encoders"
    with pytest.raises(StopIteration):
        train(0, 1)
    assert len(steps) == 12 + 6
    (left,) = encoders.glob("*.checkpoints/*")
    assert (left.parent.name.partition("-")[0], left.name) == ("attention", "attention")
    with pytest.raises(StopIteration):
        train(0, 2, 0, 1)
    assert len(steps) == 18 + 3 + 6
    (left,) = encoders.glob("*.checkpoints/*")  # the first stage is done
    assert (left.parent.name.partition("-")[0], left.name) == ("trained", "depths")
    assert [path.name for path in left.iterdir()] == ["000000000001.safetensors"]
    # What a kill in the midst of writing leaves.
    (left / ".000000000002.safetensors.abc.writing").touch()
    resumed, told = train(0, 2)
    assert len(steps) == 27 + 3
    assert told == about
    names = sorted(path.name.partition("-")[0] for path in encoders.iterdir())
    assert names == ["attention"] * 2 + ["trained"] * 2
    expected, found = whole.tensors(), resumed.tensors()
    assert set(found) == set(expected) >= {"text.embedding", "depth_key_proj.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
