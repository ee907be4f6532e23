"""Trainings of an encoder that are killed and resumed end with the same weights."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training import selection, stages
from maw_gym.encoders.training.selection import train_encoder, trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation

SHAPE = EncoderSettings(depths=3)
# 10 pairs in batches of 4: 3 steps an epoch.
SETTINGS = TrainingSettings(epochs=2, depth_epochs=2, batch_size=4, train_text_encoder=True)


class Killed(Exception):
    """Stands for the end of the process."""


@contextmanager
def killed_at(look):
    """End a training when it looks at the validation queries for the `look`-th time."""
    looks = []
    original = Validation.score

    def score(self, *given):
        looks.append(1)
        if len(looks) == look:
            raise Killed
        return original(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "score", score)
        try:
            yield
        except Killed:
            return
    pytest.fail(f"{len(looks)} looks, none was the last")


@pytest.fixture
def steps(monkeypatch):
    """Counts the batches trained on, in both stages."""
    done = []

    def counted(loss):
        return lambda *given: done.append(1) or loss(*given)

    monkeypatch.setattr(stages, "batch_loss", counted(stages.batch_loss))
    monkeypatch.setattr(stages, "depth_loss", counted(stages.depth_loss))
    return done


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Makes the cache folder another one, and gives its folder of encoders."""

    def make(name):
        monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / name))
        return tmp_path / name / "encoders"

    return make


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(some, other):
    return set(some) == set(other) and all(torch.equal(some[name], other[name]) for name in some)


def test_killed_in_both_stages_and_resumed(tiny, tmp_path, steps, fresh):
    fresh("whole")
    whole, about = train_encoder([tiny], "cpu", SETTINGS, SHAPE)
    assert len(steps) == 12
    encoders = fresh("stopped")
    place = tmp_path / "encoder.safetensors"
    # Looks: before training, and after epochs 1 and 2.
    with killed_at(3):
        train_encoder([tiny], "cpu", SETTINGS, SHAPE, place)
    assert len(steps) == 12 + 6
    (left,) = encoders.glob("*.checkpoints")
    assert names(left) == ["attention"]
    # After epoch 2; before the depths, after their epochs 1 and 2.
    with killed_at(5):
        train_encoder([tiny], "cpu", SETTINGS, SHAPE, place)
    assert len(steps) == 18 + 3 + 6
    assert names(tmp_path / "encoder.checkpoints") == ["depths"]
    assert not list(encoders.glob("*.checkpoints"))  # the first stage is done
    resumed, told = train_encoder([tiny], "cpu", SETTINGS, SHAPE, place)
    assert len(steps) == 27 + 3
    assert told == about
    assert "text.embedding" in resumed.tensors()
    assert same(resumed.tensors(), whole.tensors())


def test_a_cached_encoder_is_resumed_and_leaves_no_checkpoint(tiny, fresh, monkeypatch, steps):
    monkeypatch.setattr(selection, "_candidates", lambda one, text: {"own pairs": [one]})
    scores = {"untrained": np.array([0.5, 0.4]), "own pairs": np.array([1.0, 0.8])}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    settings = replace(SETTINGS, epochs=1, train_text_encoder=False)
    fresh("whole")
    whole, _ = trained_embedder(tiny, "cpu", settings)
    encoders = fresh("stopped")
    # Before training, after its epoch; before the depths, after their epochs 1 and 2.
    with killed_at(5):
        trained_embedder(tiny, "cpu", settings)
    (left,) = encoders.glob("*.checkpoints/depths")
    assert left.parent.name.startswith("trained-")
    assert names(left) == ["000000000001.safetensors"]
    # What a kill in the midst of writing leaves.
    (left / ".000000000002.safetensors.abc.writing").touch()
    del steps[:]
    resumed, _ = trained_embedder(tiny, "cpu", settings)
    assert len(steps) == 3
    assert [name.split("-")[0] for name in names(encoders)] == ["attention"] * 2 + ["trained"] * 2
    assert same(resumed.tensors(), whole.tensors())
