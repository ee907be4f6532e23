import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maw_gym import files
from maw_gym.checkpoints import Checkpoints, optimizer_state, restore_optimizer
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
    steps = []
    found = checkpoints.restore(lambda checkpoint: steps.append(checkpoint.step))
    assert (found is None) == (steps == [])
    return steps


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_the_last_two_are_kept_and_the_last_is_taken(kept: Checkpoints):
    assert names(kept.folder) == ["000000000002.safetensors", "000000000003.safetensors"]
    found = kept.restore(lambda checkpoint: None)
    assert found is not None
    assert (found.step, found.state, found.tensors["numbers"].tolist()) == (3, {"at": 3}, [3.0] * 4)
    assert found.path == kept.folder / "000000000003.safetensors"


@pytest.mark.parametrize("at", [-1, 20], ids=["a number", "the header"])
def test_a_damaged_one_is_deleted_and_gives_way_to_the_one_before(kept: Checkpoints, at: int):
    flipped(kept.files()[-1], at)
    assert taken(kept) == [2]
    assert names(kept.folder) == ["000000000002.safetensors"]
    flipped(kept.files()[-1], at)
    assert taken(kept) == []
    assert names(kept.folder) == []


@pytest.mark.parametrize("change", ["3", "4000000000"])
def test_a_state_changed_by_hand_is_noticed(kept: Checkpoints, change: str):
    last = kept.files()[-1]
    content = last.read_bytes()
    changed = content.replace(b'\\"at\\":3', b'\\"at\\":' + change.encode())
    length = int.from_bytes(content[:8], "little") + len(changed) - len(content)
    last.write_bytes(length.to_bytes(8, "little") + changed[8:])
    assert taken(kept) == ([3] if change == "3" else [2])


def test_those_of_another_training_are_passed_over_and_left(kept: Checkpoints, caplog):
    other = Checkpoints(kept.folder, ABOUT | {"seed": 1})
    assert taken(other) == []
    assert names(kept.folder) == ["000000000002.safetensors", "000000000003.safetensors"]
    assert caplog.messages == [
        f"checkpoint left out: {path} is of another training or step"
        for path in reversed(kept.files())
    ]
    other.write(4, {}, {})
    assert taken(other) == [4]
    assert taken(kept) == [3]


def test_a_renamed_one_is_passed_over(kept: Checkpoints):
    kept.files()[-1].rename(kept.folder / "000000000009.safetensors")
    assert taken(kept) == [2]


def test_a_state_that_cannot_be_used_gives_way_to_the_one_before(kept: Checkpoints):
    steps = []

    def take(checkpoint):
        steps.append(checkpoint.step)
        if checkpoint.step == 3:
            raise KeyError("num_timesteps")

    found = kept.restore(take)
    assert found is not None
    assert (steps, found.step) == ([3, 2], 2)
    assert len(kept.files()) == 2


def test_where_no_state_can_be_used_that_is_said(kept: Checkpoints):
    def take(checkpoint):
        checkpoint.tensors["other"]

    with pytest.raises(InputError) as caught:
        kept.restore(take)
    assert str(caught.value) == (
        f"{kept.files()[0]} cannot be used (KeyError: 'other'); start the training anew"
    )
    assert len(kept.files()) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_what_cannot_be_opened_is_an_error_and_stays(
    kept: Checkpoints, number: int, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(InputError, match=f"cannot be read: {os.strerror(number)}"):
            kept.restore(pytest.fail)
    assert taken(kept) == [3]


def test_those_of_a_newer_version_are_an_error_and_stay(kept: Checkpoints):
    last = kept.files()[-1]
    newer = {"kind": "checkpoint", "settings": {}, "format": 2, "checksum": "of another kind"}
    save_file({"numbers": torch.ones(4)}, last, {"maw_gym": json.dumps(newer)})
    with pytest.raises(InputError, match="was written by a newer version of maw_gym; update"):
        kept.restore(pytest.fail)
    assert last.exists()


def test_other_files_are_no_checkpoints(kept: Checkpoints):
    (kept.folder / "12 of another.safetensors").touch()
    (kept.folder / "last.safetensors").touch()
    assert taken(kept) == [3]
    files.write(kept.files()[-1], {"a": torch.ones(1)}, "router", {})
    with pytest.raises(InputError, match="holds a 'router', not a 'checkpoint'"):
        kept.restore(pytest.fail)
    assert len(kept.files()) == 2


def test_a_full_disk_leaves_those_before(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch):
    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(InputError) as caught:
            kept.write(4, {"numbers": torch.ones(4)}, {})
    assert str(caught.value) == (
        f"{kept.folder / '000000000004.safetensors'} cannot be written: No space left on device;"
        " make room for it or name another place"
    )
    assert names(kept.folder) == ["000000000002.safetensors", "000000000003.safetensors"]
    assert taken(kept) == [3]


def test_forgetting_leaves_what_is_not_ours(kept: Checkpoints):
    note = kept.folder / "note.txt"
    note.touch()
    kept.forget()
    assert names(kept.folder) == ["note.txt"]
    note.unlink()
    kept.forget()
    assert not kept.folder.exists()
    kept.forget()


def stepped(optimizer: torch.optim.Optimizer, weight: torch.Tensor, count: int) -> None:
    for number in range(count):
        weight.grad = torch.full((2,), number + 1.0)
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_where_it_stood(kind: type, tmp_path: Path):
    arguments = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizers = [kind([weight], **arguments) for weight in weights]
    stepped(optimizers[0], weights[0], 3)
    optimizers[0].param_groups[0]["lr"] = 0.05
    tensors, groups = optimizer_state(optimizers[0])
    with torch.no_grad():
        weights[1].copy_(weights[0])
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.write(3, tensors | {"other": torch.ones(1)}, {"groups": groups})
    checkpoints.restore(
        lambda found: restore_optimizer(optimizers[1], found.tensors, found.state["groups"])
    )
    for optimizer, weight in zip(optimizers, weights, strict=True):
        stepped(optimizer, weight, 2)
    assert torch.equal(weights[0], weights[1])
    assert optimizers[1].param_groups[0]["lr"] == 0.05


def test_those_of_another_training_that_was_further_do_not_take_the_room(kept: Checkpoints):
    other = Checkpoints(kept.folder, ABOUT | {"seed": 1})
    assert other.restore(pytest.fail) is None
    other.write(1, {}, {})
    assert other.restore(lambda _: None).step == 1
    assert taken(kept) == [3]
