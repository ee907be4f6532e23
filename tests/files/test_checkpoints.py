"""Checkpoints of a training: which are kept, which one is taken up, and what it brings back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from maw_gym import files
from maw_gym.checkpoints import (
    Best,
    Checkpoints,
    EpochCheckpoints,
    Progress,
    optimizer_state,
    restore_optimizer,
)
from maw_gym.errors import InputError

ABOUT = {"learner": "GRPO", "seed": 0}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Written at steps 1, 2 and 3: tensors of four equal numbers, and the step in the state."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", ABOUT)
    for step in (1, 2, 3):
        checkpoints.write(step, {"numbers": torch.full((4,), float(step))}, {"at": step})
    return checkpoints


def taken(checkpoints: Checkpoints) -> list[int]:
    """The steps that are tried, newest first, until one is taken."""
    steps: list[int] = []
    found = checkpoints.restore(lambda checkpoint: steps.append(checkpoint.step))
    assert (found is None) == (steps == [])
    return steps


def test_the_last_two_are_kept_and_the_last_is_taken(kept: Checkpoints) -> None:
    assert kept.folder is not None
    assert names(kept.folder) == ["000000000002.safetensors", "000000000003.safetensors"]
    found = kept.restore(lambda checkpoint: None)
    assert found is not None
    assert (found.step, found.state, found.tensors["numbers"].tolist()) == (3, {"at": 3}, [3.0] * 4)
    assert found.path == kept.folder / "000000000003.safetensors"


@pytest.mark.parametrize("at", [-1, 20], ids=["a number", "the header"])
def test_a_damaged_one_is_deleted_and_gives_way_to_the_one_before(
    kept: Checkpoints, at: int
) -> None:
    for left in ([2], []):
        last = kept.files()[-1]
        content = bytearray(last.read_bytes())
        content[at] ^= 1
        last.write_bytes(content)
        assert taken(kept) == left
        assert len(kept.files()) == len(left)


def test_those_of_another_training_are_passed_over_and_left(
    kept: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    other = Checkpoints(kept.folder, ABOUT | {"seed": 1})
    assert taken(other) == []
    assert caplog.messages == [
        f"checkpoint left out: {path} is of another training or step"
        for path in reversed(kept.files())
    ]
    for step in (1, 4):  # one that is not as far takes no room from those
        other.write(step, {}, {})
        assert (taken(other), taken(kept)) == ([step], [3])


def test_what_is_no_checkpoint_of_that_step_is_passed_over(kept: Checkpoints) -> None:
    assert kept.folder is not None
    (kept.folder / "12 of another.safetensors").touch()
    (kept.folder / "last.safetensors").touch()
    kept.files()[-1].rename(kept.folder / "000000000009.safetensors")
    assert taken(kept) == [2]


def test_a_state_that_cannot_be_used_gives_way_to_the_one_before(kept: Checkpoints) -> None:
    def take(checkpoint: Any) -> None:
        if checkpoint.step == 3:
            raise KeyError("num_timesteps")

    found = kept.restore(take)
    assert found is not None
    assert (found.step, len(kept.files())) == (2, 2)
    with pytest.raises(InputError) as caught:
        kept.restore(lambda checkpoint: checkpoint.tensors["other"])
    assert str(caught.value) == (
        f"{kept.files()[0]} cannot be used (KeyError: 'other'); start the training anew"
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("newer", "was written by a newer version of maw_gym; update"),
        ("other", "holds a 'router', not a 'checkpoint'"),
        ("closed", "cannot be read: Too many open files"),
    ],
)
def test_what_is_not_damaged_is_an_error_and_stays(
    kept: Checkpoints, what: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OSError(24, "Too many open files", str(path))

    if what == "newer":
        newer = {"kind": "checkpoint", "settings": {}, "format": 2, "checksum": "of another kind"}
        save_file({"numbers": torch.ones(4)}, kept.files()[-1], {"maw_gym": json.dumps(newer)})
    elif what == "other":
        files.write(kept.files()[-1], {"a": torch.ones(1)}, "router", {})
    else:
        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=message):
        kept.restore(pytest.fail)
    assert len(kept.files()) == 2


def test_forgetting_leaves_what_is_not_ours(kept: Checkpoints) -> None:
    assert kept.folder is not None
    note = kept.folder / "note.txt"
    note.touch()
    (kept.folder / ".000000000004.safetensors.abc.writing").touch()  # of a process that was killed
    kept.forget()
    assert names(kept.folder) == ["note.txt"]
    note.unlink()
    for _ in range(2):
        kept.forget()
        assert not kept.folder.exists()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_where_it_stood(kind: Any, tmp_path: Path) -> None:
    def steps(optimizer: torch.optim.Optimizer, weight: torch.Tensor, count: int) -> None:
        for number in range(count):
            weight.grad = torch.full((2,), number + 1.0)
            optimizer.step()

    arguments = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    first, second = (kind([weight], **arguments) for weight in weights)
    steps(first, weights[0], 3)
    first.param_groups[0]["lr"] = 0.05
    tensors, groups = optimizer_state(first)
    with torch.no_grad():
        weights[1].copy_(weights[0])
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.write(3, tensors | {"other": torch.ones(1)}, {"groups": groups})
    checkpoints.restore(
        lambda found: restore_optimizer(second, found.tensors, found.state["groups"])
    )
    for optimizer, weight in zip((first, second), weights, strict=True):
        steps(optimizer, weight, 2)
    assert torch.equal(*weights)
    assert second.param_groups[0]["lr"] == 0.05


# --- trainings by epochs ----------------------------------------------------------------------

START = Progress(0, Best(0.0, 0, {}), [])


class Training:
    """A weight that each step lowers by a random number, with AdamW and a schedule."""

    def __init__(self, folder: Path | None, about: str = "this", start: float = 0.0) -> None:
        self.weight = torch.nn.Parameter(torch.full((4,), start))
        self.optimizer = torch.optim.AdamW([self.weight], 0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=10)
        self.generator = torch.Generator().manual_seed(0)
        more = (self.optimizer, self.generator, self.schedule)
        self.kept = EpochCheckpoints(folder, {"about": about}, {"weight": self.weight}, *more)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.weight.grad = torch.rand(4, generator=self.generator)
            self.optimizer.step()
            self.schedule.step()


@pytest.fixture
def stopped(tmp_path: Path) -> Training:
    """Written after epoch 2 of two steps each, then two more steps done."""
    training = Training(tmp_path)
    training.steps(4)
    best = Best(0.75, 1, {"weight": torch.full((4,), 7.0)})
    training.kept.write_epoch(Progress(2, best, [{"loss": 0.75}, {"loss": 0.1}]))
    training.steps(2)
    return training


def test_everything_is_restored(stopped: Training, tmp_path: Path) -> None:
    resumed = Training(tmp_path)
    found = resumed.kept.restore_epoch(START)
    assert (found.epoch, found.best.score, found.best.epoch) == (2, 0.75, 1)
    assert found.history == [{"loss": 0.75}, {"loss": 0.1}]
    assert found.best.weights["weight"].tolist() == [7.0] * 4
    resumed.steps(2)
    assert torch.equal(resumed.weight, stopped.weight)


def test_an_epoch_that_cannot_be_used_gives_way_to_the_one_before(
    stopped: Training, tmp_path: Path
) -> None:
    stopped.kept.write(3, {"weights/weight": torch.zeros(4)}, {})  # of another version, say
    assert Training(tmp_path).kept.restore_epoch(START).epoch == 2


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("other", [{"about": "that"}, {"start": 1.0}], ids=str)
def test_another_training_begins_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    assert Training(tmp_path, **other).kept.restore_epoch(START) is START


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Training(None).kept
    kept.write_epoch(START)
    assert kept.restore_epoch(START) is START
    assert names(tmp_path) == []
