"""Checkpoints of a run: one safetensors file each, written whole, the last two kept.

A checkpoint holds tensors and JSON and nothing else, so that going on with a run never executes
what is in a file. `model.zip`, which Stable-Baselines3 pickles, is left for its users and not read.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from maw_gym.errors import InputError
from maw_gym.files.tensor_files import fingerprint, read_settings, write_tensors

log = logging.getLogger(__name__)

FOLDER: Final = "checkpoints"
KEPT: Final = 2
KIND: Final = "checkpoint"
FORMAT: Final = 1  # raise when what a checkpoint holds changes


class Checkpoint(NamedTuple):
    """The state of a training between two rollouts.

    Attributes:
        path: the file.
        step: environment steps done.
        tensors: by name.
        state: JSON values.
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint, then delete all but the last two.

    Whatever goes wrong, a full disk included, the checkpoints before are left whole.

    Args:
        run: folder of the run.
        step: environment steps done; names the file.
        tensors: by name, of any type, none sharing memory with another.
        state: JSON values.

    Returns:
        The file.
    """
    path = run / FOLDER / f"{step:012d}.safetensors"
    content = {"format": FORMAT, "step": step, "state": state, "sha256": fingerprint(tensors)}
    write_tensors(path, tensors, KIND, content)
    # The new name must outlive a power cut before the old file goes.
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    for old in checkpoint_files(run)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def checkpoint_files(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("[0-9]*.safetensors"))


def forget_checkpoints(run: Path) -> None:
    """Delete the checkpoints of a run that begins anew."""
    for path in checkpoint_files(run):
        path.unlink(missing_ok=True)


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The last checkpoint that is whole, or None; damaged ones are deleted."""
    for path in reversed(checkpoint_files(run)):
        try:
            return _read(path)
        except InputError as problem:
            log.warning("checkpoint left out: %s", problem)
            path.unlink(missing_ok=True)
    return None


def _read(path: Path) -> Checkpoint:
    content = read_settings(path, KIND)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} was written by another version")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checkpoint = Checkpoint(path, int(content["step"]), tensors, dict(content["state"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a whole checkpoint ({error})") from None
    if content.get("sha256") != fingerprint(tensors):
        raise InputError(f"{path} is damaged: its numbers are not those that were written")
    return checkpoint
