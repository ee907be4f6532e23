"""The loop over epochs that both stages share: steps, checkpoints, the best epoch."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from maw_gym.checkpoints import Best, EpochCheckpoints, Progress, stage_folder
from maw_gym.distributed import check_same, from_first, is_first, others, with_mean_gradients
from maw_gym.files import content_key, fingerprint

log = logging.getLogger(__name__)


class Stage(NamedTuple):
    """One stage of a training.

    Attributes:
        name: of its checkpoints and messages.
        epochs: passes over the queries.
        steps: per epoch.
        queries: per epoch, by all steps together.
        groups: parameter groups of AdamW with their peak learning rates.
        weights: everything that changes; the best epoch's are left in them.
        losses: functions that give one epoch's losses, a step each, with gradients; all that is
            random comes from the generator.
        score: of the weights as they are, the larger the better.
        seed: of the generator.
        about: JSON values that the stage depends on, beside the weights it starts from.
    """

    name: str
    epochs: int
    steps: int
    queries: int
    groups: list[dict[str, Any]]
    weights: Mapping[str, Tensor]
    losses: Callable[[torch.Generator], Iterator[Callable[[], Tensor]]]
    score: Callable[[], float]
    seed: int
    about: Mapping[str, Any]


def run(stage: Stage, checkpoint: Path | None = None) -> Best:
    """Train a stage in place; epoch 0, before the first step, is judged with the others.

    Several processes (`maw_gym.distributed`) do this together: the losses are of whole batches, of
    which each has encoded its share, and the first one judges and writes. Any number of them can go
    on from a checkpoint.

    Args:
        stage: what to train.
        checkpoint: the file that the whole training is for; every epoch is kept beside it, and a
            training that was stopped goes on after its last. None keeps nothing.

    Raises:
        FloatingPointError: a loss is not finite, and so are the weights.
        InputError: processes that begin with different weights or from different checkpoints.
    """
    about = {"stage": stage.name, **stage.about}
    start = content_key({"about": about, "weights": fingerprint(stage.weights)})
    check_same(f"start of training {stage.name}", start)
    best = Best(_score(stage), 0, _copied(stage.weights))
    steps = stage.epochs * stage.steps
    if steps == 0:
        return best
    optimizer = torch.optim.AdamW(stage.groups)
    averaged = with_mean_gradients(weight for group in stage.groups for weight in group["params"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(steps, 2),
        # Of 10 steps a tenth ends where it begins, and OneCycleLR divides by zero.
        pct_start=0.1 if steps != 10 else 0.11,
    )
    generator = torch.Generator().manual_seed(stage.seed)
    folder = None if checkpoint is None else stage_folder(checkpoint, stage.name)
    kept = EpochCheckpoints(folder, about, stage.weights, optimizer, generator, schedule)
    done, best, _ = kept.restore_epoch(Progress(0, best, []))
    check_same(f"checkpoint of training {stage.name}", f"after epoch {done}")
    label = f"training {stage.name}"
    hidden = None if is_first() else True
    with tqdm(total=steps, desc=label, delay=2, leave=False, disable=hidden) as bar:
        bar.update(done * stage.steps)
        for epoch in range(done + 1, stage.epochs + 1):
            began = time.perf_counter()
            before: Tensor | None = None
            for of_batch in stage.losses(generator):
                optimizer.zero_grad(set_to_none=True)
                with others():
                    loss = averaged(of_batch)
                    loss.backward()
                optimizer.step()
                schedule.step()
                # A step late: a GPU would else stand still until the next step is launched.
                _check_finite(before, stage, epoch)
                before = loss.detach()
                bar.update()
            _check_finite(before, stage, epoch)
            rate = stage.queries / (time.perf_counter() - began)
            score = _score(stage)
            bar.set_postfix({"validation nDCG@10": f"{score:.4f}"}, refresh=False)
            message = "%s, epoch %d: %.0f queries/s, validation nDCG@10 %.4f"
            log.info(message, stage.name, epoch, rate, score)
            if score > best.score:
                best = Best(score, epoch, _copied(stage.weights))
            if is_first():
                kept.write_epoch(Progress(epoch, best, []))
    with torch.no_grad():
        for name, value in stage.weights.items():
            value.copy_(best.weights[name])
    return best


def _check_finite(loss: Tensor | None, stage: Stage, epoch: int) -> None:
    if loss is not None and not math.isfinite(value := loss.item()):
        raise FloatingPointError(
            f"loss {value} in epoch {epoch} of training {stage.name}; lower the learning rates"
        )


def _score(stage: Stage) -> float:
    """What the first process finds: a rounding apart, others might keep another epoch."""
    return from_first(stage.score() if is_first() else 0.0)


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
