"""Checkpoints of a training: which are kept, which one is taken up, and what it brings back."""

import pytest
import torch
from torch.optim import AdamW

from maw_gym import files
from maw_gym.checkpoints import Best, Checkpoints, EpochCheckpoints, Progress
from maw_gym.errors import InputError

ABOUT = {"learner": "GRPO", "seed": 0}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def kept(tmp_path):
    """Written at steps 1, 2 and 3: tensors of four equal numbers, and the step in the state."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", ABOUT)
    for step in (1, 2, 3):
        checkpoints.write(step, {"numbers": torch.full((4,), float(step))}, {"at": step})
    return checkpoints


def taken(checkpoints):
    """The steps that are tried, newest first, until one is taken."""
    steps: list[int] = []
    found = checkpoints.restore(lambda checkpoint: steps.append(checkpoint.step))
    assert (found is None) == (steps == [])
    return steps


def test_the_last_two_are_kept_and_the_last_is_taken(kept):
    assert names(kept.folder) == ["000000000002.safetensors", "000000000003.safetensors"]
    found = kept.restore(lambda checkpoint: None)
    assert (found.step, found.state, found.tensors["numbers"].tolist()) == (3, {"at": 3}, [3.0] * 4)
    assert found.path == kept.folder / "000000000003.safetensors"


@pytest.mark.parametrize("at", [-1, 20], ids=["a number", "the header"])
def test_a_damaged_one_is_deleted_and_gives_way_to_the_one_before(kept, at):
    for left in ([2], []):
        last = kept.files()[-1]
        content = bytearray(last.read_bytes())
        content[at] ^= 1
        last.write_bytes(content)
        assert taken(kept) == left
        assert len(kept.files()) == len(left)


def test_those_of_another_training_are_passed_over_and_left(kept, caplog):
    other = Checkpoints(kept.folder, ABOUT | {"seed": 1})
    assert taken(other) == []
    assert caplog.messages == [
        f"checkpoint left out: {path} is of another training or step"
        for path in reversed(kept.files())
    ]
    for step in (1, 4):  # one that is not as far takes no room from those
        other.write(step, {}, {})
        assert (taken(other), taken(kept)) == ([step], [3])


def test_what_is_no_checkpoint_of_that_step_is_passed_over(kept):
    (kept.folder / "12 of another.safetensors").touch()
    (kept.folder / "last.safetensors").touch()
    kept.files()[-1].rename(kept.folder / "000000000009.safetensors")
    assert taken(kept) == [2]


def test_a_state_that_cannot_be_used_gives_way_to_the_one_before(kept):
    def take(checkpoint):
        if checkpoint.step == 3:
            raise KeyError("num_timesteps")

    found = kept.restore(take)
    assert (found.step, len(kept.files())) == (2, 2)
    with pytest.raises(InputError) as caught:
        kept.restore(lambda checkpoint: checkpoint.tensors["other"])
    assert str(caught.value) == (
        f"{kept.files()[0]} cannot be used (KeyError: 'other'); start the training anew"
    )


def test_what_is_not_damaged_is_an_error_and_stays(kept):
    files.write(kept.files()[-1], {"a": torch.ones(1)}, "router", {})
    with pytest.raises(InputError, match="holds a 'router', not a 'checkpoint'"):
        kept.restore(pytest.fail)
    assert len(kept.files()) == 2


def test_forgetting_leaves_what_is_not_ours(kept):
    note = kept.folder / "note.txt"
    note.touch()
    (kept.folder / ".000000000004.safetensors.abc.writing").touch()  # of a process that was killed
    kept.forget()
    assert names(kept.folder) == ["note.txt"]
    note.unlink()
    for _ in range(2):
        kept.forget()
        assert not kept.folder.exists()


START = Progress(0, Best(0.0, 0, {}), [])


class Training:
    """A weight that each step lowers by a random number, with an optimizer and a schedule."""

    def __init__(self, folder, about="this", start=0.0):
        self.weight = torch.nn.Parameter(torch.full((4,), start))
        self.optimizer = AdamW([self.weight], 0.1, betas=(0.8, 0.99))
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=10)
        self.generator = torch.Generator().manual_seed(0)
        given = (self.optimizer, self.generator, self.schedule)
        self.kept = EpochCheckpoints(folder, {"about": about}, {"weight": self.weight}, *given)

    def steps(self, count):
        for _ in range(count):
            self.weight.grad = torch.rand(4, generator=self.generator)
            self.optimizer.step()
            self.schedule.step()


def test_epochs_go_on_where_the_last_usable_state_was_written(tmp_path):
    stopped, resumed = Training(tmp_path), Training(tmp_path)
    stopped.steps(4)
    best = Best(0.75, 1, {"weight": torch.full((4,), 7.0)})
    stopped.kept.write_epoch(Progress(2, best, [{"loss": 0.75}, {"loss": 0.1}]))
    stopped.kept.write(3, {"weights/weight": torch.zeros(4)}, {})  # of another version, say
    found = resumed.kept.restore_epoch(START)
    assert (found.epoch, found.best.score, found.best.epoch) == (2, 0.75, 1)
    assert found.history == [{"loss": 0.75}, {"loss": 0.1}]
    assert found.best.weights["weight"].tolist() == [7.0] * 4
    for training in (stopped, resumed):
        training.steps(5)
    assert torch.equal(resumed.weight, stopped.weight)
    for other in ({"about": "that"}, {"start": 1.0}):  # another training begins anew
        assert Training(tmp_path, **other).kept.restore_epoch(START) is START
