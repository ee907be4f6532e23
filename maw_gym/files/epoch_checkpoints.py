"""Where a training by epochs stands: one safetensors file that each finished epoch replaces.

A training that was killed goes on after its last finished epoch and ends with the same weights, bit
for bit on the CPU. The file holds tensors and JSON and runs nothing.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maw_gym.errors import InputError
from maw_gym.files.cache import content_key
from maw_gym.files.tensor_files import fingerprint, read_settings, write_tensors

log = logging.getLogger(__name__)

KIND: Final = "training checkpoint"
FORMAT: Final = 1  # raise when what a checkpoint holds changes


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
    """The checkpoint file of one training.

    Args:
        path: the file; None keeps no checkpoints.
        about: JSON values that the training depends on, beside the weights it starts from. The file
            of a training about something else is not taken.
        weights: everything learned, before the first step; restored in place.
        optimizer: of these weights.
        generator: the source of everything random in the training.
        schedule: of the learning rates, where there is one.
    """

    def __init__(
        self,
        path: Path | None,
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        self.path = path
        self.weights = weights
        self.optimizer = optimizer
        self.generator = generator
        self.schedule = schedule
        if path is not None:
            self._training = content_key({"about": about, "start": fingerprint(weights)})

    def write(self, progress: Progress) -> None:
        """Replace the file by the present state; whatever goes wrong leaves the one before."""
        if self.path is None:
            return
        tensors = {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"best/{name}": value for name, value in progress.best.weights.items()}
        optimizer = self.optimizer.state_dict()
        for row, entries in optimizer["state"].items():
            tensors |= {f"optimizer/{row}/{name}": value for name, value in entries.items()}
        tensors["generator"] = self.generator.get_state()
        state = {
            "training": self._training,
            "epoch": progress.epoch,
            "best": [progress.best.score, progress.best.epoch],
            "history": progress.history,
            "groups": optimizer["param_groups"],
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }
        settings = {"format": FORMAT, "state": state, "checksum": _checksum(tensors, state)}
        write_tensors(self.path, tensors, KIND, settings)

    def restore(self, start: Progress) -> Progress:
        """Put weights, optimizer, schedule and generator where the file says.

        Args:
            start: what to return where there is no file, or none that is whole and this training's.
        """
        if self.path is None or not self.path.exists():
            return start
        try:
            tensors, state = self._read(self.path)
        except InputError as problem:
            log.warning("checkpoint left out: %s", problem)
            return start
        best = {name: tensors[f"best/{name}"].to(t.device) for name, t in self.weights.items()}
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(tensors[f"weights/{name}"])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, row, entry = name.split("/")
                entries.setdefault(int(row), {})[entry] = value
        groups = [{**group, "betas": tuple(group["betas"])} for group in state["groups"]]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(tensors["generator"])
        score, epoch = state["best"]
        log.info("%s: going on after epoch %d", self.path.name, state["epoch"])
        return Progress(state["epoch"], Best(score, epoch, best), list(state["history"]))

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of a file of this training.

        Raises:
            InputError: it is damaged, or of another training or version.
        """
        settings = read_settings(path, KIND)
        state = settings.get("state")
        if settings.get("format") != FORMAT or not isinstance(state, dict):
            raise InputError(f"{path} was written by another version")
        if state.get("training") != self._training:
            raise InputError(f"{path} is of another training")
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is not a whole checkpoint ({error})") from None
        if settings.get("checksum") != _checksum(tensors, state):
            raise InputError(f"{path} is damaged: its numbers are not those that were written")
        return tensors, state


def stage_file(path: Path, stage: str) -> Path:
    """The checkpoint file of one stage of the training whose result will be `path`."""
    return path.with_name(f"{path.stem}.{stage}.checkpoint")


def forget_checkpoints(path: Path) -> None:
    """Delete the checkpoints of all stages, and what a kill in the midst of writing has left."""
    for pattern in (stage_file(path, "*").name, f".{stage_file(path, '*').name}.*"):
        for file in path.parent.glob(pattern):
            file.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    return content_key({"tensors": fingerprint(tensors), "state": state})
