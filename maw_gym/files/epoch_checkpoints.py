"""Where a training by epochs stands: weights, the best so far, optimizer, generator, schedule.

A training that was killed goes on after its last finished epoch and ends with the same weights, bit
for bit on the CPU.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maw_gym.files.checkpoints import (
    Checkpoint,
    Checkpoints,
    optimizer_state,
    restore_optimizer,
)
from maw_gym.files.tensor_files import fingerprint

log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best weights so far.

    Attributes:
        score: what the epochs are compared by, the larger the better.
        epoch: 0 is the state before training.
        weights: everything learned.
    """

    score: float
    epoch: int
    weights: dict[str, Tensor]


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        epoch: the last one finished; 0 is the state before training.
        best: see `Best`.
        history: what was measured in each finished epoch, where that is wanted later.
    """

    epoch: int
    best: Best
    history: list[dict[str, float]]


class EpochCheckpoints:
    """The checkpoints of one training by epochs.

    Args:
        folder: see `Checkpoints`; None keeps no checkpoints.
        about: JSON values that the training depends on, beside the weights it starts from. Those of
            a training about something else are not taken.
        weights: everything learned, before the first step; restored in place.
        optimizer: of these weights.
        generator: the source of everything random in the training.
        schedule: of the learning rates, where there is one.
    """

    def __init__(
        self,
        folder: Path | None,
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.generator = generator
        self.schedule = schedule
        self.checkpoints: Checkpoints | None = None
        if folder is not None:
            start = fingerprint(weights)
            self.checkpoints = Checkpoints(folder, {"about": about, "start": start})

    def write(self, progress: Progress) -> None:
        """Keep the present state; whatever goes wrong leaves the one before."""
        if self.checkpoints is None:
            return
        tensors, groups = optimizer_state(self.optimizer)
        tensors |= {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"best/{name}": value for name, value in progress.best.weights.items()}
        tensors["generator"] = self.generator.get_state()
        state = {
            "best": [progress.best.score, progress.best.epoch],
            "history": progress.history,
            "groups": groups,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }
        self.checkpoints.write(progress.epoch, tensors, state)

    def restore(self, start: Progress) -> Progress:
        """Put weights, optimizer, schedule and generator where the last checkpoint says.

        Args:
            start: what to return where there is none of this training.
        """
        if self.checkpoints is None:
            return start
        taken: list[Progress] = []
        checkpoint = self.checkpoints.restore(lambda found: taken.append(self._take(found)))
        if checkpoint is None:
            return start
        log.info("%s: going on after epoch %d", checkpoint.path.parent, checkpoint.step)
        return taken[-1]

    def _take(self, checkpoint: Checkpoint) -> Progress:
        tensors, state = checkpoint.tensors, checkpoint.state
        best = {name: tensors[f"best/{name}"].to(t.device) for name, t in self.weights.items()}
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(tensors[f"weights/{name}"])
        restore_optimizer(self.optimizer, tensors, state["groups"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(tensors["generator"])
        score, epoch = state["best"]
        return Progress(checkpoint.step, Best(score, epoch, best), list(state["history"]))


def stage_folder(path: Path, stage: str) -> Path:
    """Where the checkpoints of one stage of the training are whose result will be `path`."""
    return path.with_suffix(".checkpoints") / stage


def forget_checkpoints(path: Path) -> None:
    """Delete the checkpoints of all stages."""
    folder = path.with_suffix(".checkpoints")
    for stage in folder.glob("*"):
        Checkpoints(stage, {}).forget()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
