from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from maw_gym.checkpoints import Best, EpochCheckpoints, Progress
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training import selection, stages
from maw_gym.encoders.training.selection import train_encoder, trained_attention, trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation

SHAPE = EncoderSettings(depths=3)
# 10 pairs in batches of 4: 3 steps an epoch.
SETTINGS = TrainingSettings(epochs=2, depth_epochs=2, batch_size=4)


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
    assert same(resumed.tensors(), whole.tensors())


def test_trained_token_embeddings_are_resumed(tiny, steps, fresh):
    settings = TrainingSettings(epochs=2, batch_size=12, train_text_encoder=True)
    fresh("whole")
    whole, _ = trained_attention([tiny], "cpu", settings, SHAPE)
    fresh("stopped")
    with killed_at(3):
        trained_attention([tiny], "cpu", settings, SHAPE)
    resumed, _ = trained_attention([tiny], "cpu", settings, SHAPE)
    assert len(steps) == 2 + 2 + 1
    assert "text.embedding" in resumed.tensors()
    assert same(resumed.tensors(), whole.tensors())


def test_a_cached_encoder_is_resumed_and_leaves_no_checkpoint(tiny, fresh, monkeypatch, steps):
    monkeypatch.setattr(selection, "_candidates", lambda collection: {"own pairs": [collection]})
    scores = {"untrained": np.array([0.5, 0.4]), "own pairs": np.array([1.0, 0.8])}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    settings = replace(SETTINGS, epochs=1, depth_epochs=2)
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


def counter():
    """A weight that each step lowers by a random number, with AdamW and a schedule."""
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([weight], 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    return weight, optimizer, schedule, torch.Generator().manual_seed(0)


def step(weight, optimizer, schedule, generator):
    weight.grad = torch.rand(4, generator=generator)
    optimizer.step()
    schedule.step()


def checkpoints_of(path, state, about="this"):
    weight, optimizer, schedule, generator = state
    return EpochCheckpoints(
        path, {"about": about}, {"weight": weight}, optimizer, generator, schedule
    )


START = Progress(0, Best(0.0, 0, {}), [])


@pytest.fixture
def written(tmp_path):
    """A checkpoint after epoch 2 of 2 steps each, and the weight after 2 more steps."""
    state = counter()
    kept = checkpoints_of(tmp_path / "epochs", state)
    for _ in range(4):
        step(*state)
    best = Best(0.75, 1, {"weight": torch.full((4,), 7.0)})
    kept.write_epoch(Progress(2, best, [{"loss": 0.75}, {"loss": 0.1}]))
    for _ in range(2):
        step(*state)
    return tmp_path / "epochs", state[0].detach()


def test_everything_is_restored(written):
    path, expected = written
    state = counter()
    found = checkpoints_of(path, state).restore_epoch(START)
    assert (found.epoch, found.best.score, found.best.epoch) == (2, 0.75, 1)
    assert found.history == [{"loss": 0.75}, {"loss": 0.1}]
    assert found.best.weights["weight"].tolist() == [7.0] * 4
    for _ in range(2):
        step(*state)
    assert torch.equal(state[0], expected)


def test_a_damaged_epoch_is_left_out(written):
    folder, _ = written
    (last,) = folder.iterdir()
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    state = counter()
    assert checkpoints_of(folder, state).restore_epoch(START) is START
    assert state[0].tolist() == [0.0] * 4


def test_an_epoch_that_cannot_be_used_gives_way_to_the_one_before(written):
    folder, _ = written
    kept = checkpoints_of(folder, counter())
    kept.write(3, {"weights/weight": torch.zeros(4)}, {})  # of another version, say
    assert kept.restore_epoch(START).epoch == 2


def test_another_training_is_left_out(written, caplog):
    path, _ = written
    assert checkpoints_of(path, counter(), "that").restore_epoch(START) is START
    other = counter()
    with torch.no_grad():
        other[0][0] = 1.0  # starts from other weights
    assert checkpoints_of(path, other).restore_epoch(START) is START
    assert [record.getMessage() for record in caplog.records] == [
        f"checkpoint left out: {path / '000000000002.safetensors'} is of another training or step"
    ] * 2


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = checkpoints_of(None, counter())
    kept.write_epoch(START)
    assert kept.restore_epoch(START) is START
    assert names(tmp_path) == []
