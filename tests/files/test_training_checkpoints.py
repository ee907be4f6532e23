"""Trainings of an encoder that are killed and resumed end with the same weights."""

import numpy as np
import pytest
import torch

from maw_gym.encoders.training import selection, stages
from maw_gym.encoders.training.selection import trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation

# 10 pairs in batches of 4: 3 steps an epoch.
SETTINGS = TrainingSettings(epochs=2, depth_epochs=2, batch_size=4, train_text_encoder=True)


@pytest.fixture
def killed_at(monkeypatch):
    """Ends a training when it looks at the validation queries for the `look`-th time."""
    score = Validation.score

    def train(look, function, *given):
        looks = iter(range(1, look))
        with monkeypatch.context() as patch:
            patch.setattr(Validation, "score", lambda *of: next(looks) and score(*of))
            with pytest.raises(StopIteration):
                function(*given)

    return train


@pytest.fixture
def steps(monkeypatch):
    """Counts the batches trained on, in both stages."""
    done = []

    def counted(loss):
        return lambda *given: done.append(1) or loss(*given)

    monkeypatch.setattr(stages, "batch_loss", counted(stages.batch_loss))
    monkeypatch.setattr(stages, "depth_loss", counted(stages.depth_loss))
    return done


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_killed_in_both_stages_and_resumed(tiny, tmp_path, steps, killed_at, monkeypatch):
    monkeypatch.setattr(selection, "_candidates", lambda one, text: {"own pairs": [one]})
    scores = {"untrained": np.array([0.5, 0.4]), "own pairs": np.array([1.0, 0.8])}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    given = tiny, "cpu", SETTINGS
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "whole"))
    whole, about = trained_embedder(*given)
    assert len(steps) == 12
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "stopped"))
    encoders = tmp_path / "stopped" / "encoders"
    # Looks: before training, and after epochs 1 and 2.
    killed_at(3, trained_embedder, *given)
    assert len(steps) == 12 + 6
    (left,) = encoders.glob("*.checkpoints/*")
    assert (left.parent.name.partition("-")[0], left.name) == ("attention", "attention")
    # After epoch 2; before the depths, after their epochs 1 and 2.
    killed_at(5, trained_embedder, *given)
    assert len(steps) == 18 + 3 + 6
    (left,) = encoders.glob("*.checkpoints/*")  # the first stage is done
    assert (left.parent.name.partition("-")[0], left.name) == ("trained", "depths")
    assert names(left) == ["000000000001.safetensors"]
    # What a kill in the midst of writing leaves.
    (left / ".000000000002.safetensors.abc.writing").touch()
    resumed, told = trained_embedder(*given)
    assert len(steps) == 27 + 3
    assert told == about
    assert [name.split("-")[0] for name in names(encoders)] == ["attention"] * 2 + ["trained"] * 2
    expected, found = whole.tensors(), resumed.tensors()
    assert set(found) == set(expected) >= {"text.embedding", "depth_key_proj.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
