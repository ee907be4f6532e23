import logging
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from maw_gym.encoders.attention_encoders import EncoderSettings
from maw_gym.encoders.training import stages as encoder_training
from maw_gym.encoders.training.selection import _path, _trained, train_encoder
from maw_gym.encoders.training.stages import TrainingSettings
from maw_gym.encoders.training.validation import Validation
from maw_gym.files.epoch_checkpoints import Best, EpochCheckpoints, Progress, stage_file
from maw_gym.files.tensor_files import write_tensors

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
    """Counts the batches trained on."""
    done = []
    original = encoder_training.batch_loss
    monkeypatch.setattr(
        encoder_training, "batch_loss", lambda *given: done.append(1) or original(*given)
    )
    return done


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(some, other):
    return set(some) == set(other) and all(torch.equal(some[name], other[name]) for name in some)


def test_killed_in_both_stages_and_resumed(tiny, tmp_path, steps):
    whole, about = train_encoder([tiny], tiny, "cpu", SETTINGS, SHAPE)
    assert len(steps) == 12
    place = tmp_path / "encoder.safetensors"
    # Looks: before training, and after epochs 1 and 2.
    with killed_at(3):
        train_encoder([tiny], tiny, "cpu", SETTINGS, SHAPE, place)
    assert len(steps) == 12 + 6
    assert names(tmp_path) == ["encoder.attention.checkpoint"]
    # Before training, after epoch 2; before the depths, after their epochs 1 and 2.
    with killed_at(5):
        train_encoder([tiny], tiny, "cpu", SETTINGS, SHAPE, place)
    assert len(steps) == 18 + 3 + 6
    assert names(tmp_path) == ["encoder.attention.checkpoint", "encoder.depths.checkpoint"]
    resumed, told = train_encoder([tiny], tiny, "cpu", SETTINGS, SHAPE, place)
    assert len(steps) == 27 + 3
    assert told == about
    assert same(resumed.tensors(), whole.tensors())


def test_trained_token_embeddings_are_resumed(tiny, tmp_path, steps):
    settings = TrainingSettings(epochs=2, depth_epochs=0, batch_size=12, train_embedding=True)
    whole, _ = train_encoder([tiny], tiny, "cpu", settings, SHAPE)
    place = tmp_path / "encoder.safetensors"
    with killed_at(3):
        train_encoder([tiny], tiny, "cpu", settings, SHAPE, place)
    resumed, _ = train_encoder([tiny], tiny, "cpu", settings, SHAPE, place)
    assert len(steps) == 2 + 2 + 1
    assert "text.embedding" in resumed.tensors()
    assert same(resumed.tensors(), whole.tensors())


def test_a_cached_encoder_is_resumed_and_leaves_no_checkpoint(tiny, tmp_path, monkeypatch, steps):
    settings = replace(SETTINGS, epochs=2, depth_epochs=1)
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "whole"))
    whole, _ = _trained([tiny], "cpu", settings)
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "stopped"))
    place = _path("trained", [tiny], "cpu", settings)
    with killed_at(3):
        _trained([tiny], "cpu", settings)
    left = stage_file(place, "attention")
    assert left.exists()
    # What a kill in the midst of writing leaves.
    left.with_name(f".{left.name}.abc").touch()
    del steps[:]
    resumed, _ = _trained([tiny], "cpu", settings)
    assert len(steps) == 3 + 3
    assert names(place.parent) == [place.name, f"{place.name}.lock"]
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
    kept = checkpoints_of(tmp_path / "file", state)
    for _ in range(4):
        step(*state)
    best = Best(0.75, 1, {"weight": torch.full((4,), 7.0)})
    kept.write(Progress(2, best, [{"loss": 0.75}, {"loss": 0.1}]))
    for _ in range(2):
        step(*state)
    return tmp_path / "file", state[0].detach()


def test_everything_is_restored(written):
    path, expected = written
    state = counter()
    found = checkpoints_of(path, state).restore(START)
    assert (found.epoch, found.best.score, found.best.epoch) == (2, 0.75, 1)
    assert found.history == [{"loss": 0.75}, {"loss": 0.1}]
    assert found.best.weights["weight"].tolist() == [7.0] * 4
    for _ in range(2):
        step(*state)
    assert torch.equal(state[0], expected)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: flip(path, -1), "is damaged: its numbers are not those that were written"),
        (
            lambda path: path.write_bytes(
                path.read_bytes().replace(b'epoch\\": 2', b'epoch\\": 3')
            ),
            "is damaged: its numbers are not those that were written",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "is not a readable safetensors"),
        (lambda path: path.write_bytes(b""), "is not a readable safetensors file"),
        (lambda path: path.write_bytes(b"\x80\x04."), "is not a readable safetensors file"),
        (
            lambda path: write_tensors(path, {"a": torch.ones(1)}, "encoder", {}),
            "holds a 'encoder', not a 'training checkpoint'",
        ),
        (
            lambda path: write_tensors(path, {"a": torch.ones(1)}, "training checkpoint", {}),
            "was written by another version",
        ),
    ],
)
def test_damaged_and_foreign_files_are_left_out(written, spoil, message, caplog):
    path, _ = written
    before = path.read_bytes()
    spoil(path)
    assert path.read_bytes() != before
    state = counter()
    with caplog.at_level(logging.WARNING):
        assert checkpoints_of(path, state).restore(START) is START
    (record,) = caplog.records
    assert record.getMessage().startswith("checkpoint left out: ")
    assert message in record.getMessage()
    assert state[0].tolist() == [0.0] * 4


def test_another_training_is_left_out(written, caplog):
    path, _ = written
    assert checkpoints_of(path, counter(), "that").restore(START) is START
    other = counter()
    with torch.no_grad():
        other[0][0] = 1.0  # starts from other weights
    assert checkpoints_of(path, other).restore(START) is START
    assert [record.getMessage() for record in caplog.records] == [
        f"checkpoint left out: {path} is of another training"
    ] * 2


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = checkpoints_of(None, counter())
    kept.write(START)
    assert kept.restore(START) is START
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_epoch_before(written, monkeypatch):
    path, _ = written
    before = path.read_bytes()
    state = counter()
    kept = checkpoints_of(path, state)

    def write_half(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", write_half)
        with pytest.raises(OSError, match="No space left"):
            kept.write(START)
    assert path.read_bytes() == before
    assert names(path.parent) == ["file"]
