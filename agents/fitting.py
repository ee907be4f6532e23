"""What learners without an environment share: gradient descent on a router's logits, its judge.

Notation: N queries, B of one batch, O observed numbers, D depths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.settings import FitSettings
from maw_gym.checkpoints import Best, EpochCheckpoints, Progress
from maw_gym.encoders.training.stages import epoch_rows
from maw_gym.envs.bandit import Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.files import fingerprint
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask

REWARD: Final = "eval/reward"  # tag of the mean validation reward

# Rows (B,) of the queries, their logits (B, D) and the share of the training that is done give
# the terms to log by name; the one called "loss" is minimised.
Terms = Callable[[Tensor, Tensor, float], dict[str, Tensor]]


class Judge:
    """Mean reward of a router's greedy depths on `validation` queries."""

    def __init__(
        self,
        task: RetrievalTask,
        observation: Sequence[str],
        reward: RewardSpec,
    ) -> None:
        self.split = "validation" if task.collection.splits["validation"].ids else "train"
        self.bandit = Bandit(task.table(self.split), observation, reward)

    def __call__(self, router: DepthRouter) -> float:
        """Mean reward of the depths that the router prefers."""
        depths, _ = router.predict(self.bandit.observations)
        return self.bandit.mean(depths)


class Fitted(NamedTuple):
    """How a fit went.

    Attributes:
        history: (epoch, mean validation reward), epochs from 1.
        best_epoch: the one whose weights the router has; of equal ones the first.
        validation_reward: its mean validation reward.
        judged_on: the split that judged, `train` where there was no validation query.
    """

    history: list[tuple[int, float]]
    best_epoch: int
    validation_reward: float
    judged_on: str


def router_settings(task: RetrievalTask, learner: str, **facts: Any) -> dict[str, Any]:
    """What a router's file says beside its weights."""
    return {
        "learner": learner,
        "dataset": task.collection.name,
        "encoder": task.embedder.fingerprint(),
        **facts,
    }


def fit(
    router: DepthRouter,
    observations: Tensor,
    terms: Terms,
    judge: Judge,
    settings: FitSettings,
    generator: torch.Generator,
    writer: SummaryWriter | None = None,
    label: str = "router",
    checkpoint: Path | None = None,
    groups: Sequence[str] = (),
    balance: float = 1.0,
) -> Fitted:
    """Train a router in place and leave it with the weights of its best epoch."""
    if balance != 1 and not any(groups):
        raise InputError(f"balance {balance} needs queries in groups; leave it at 1")
    optimizer = torch.optim.AdamW(
        router.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    per_epoch = math.ceil(len(observations) / settings.batch_size)
    steps = settings.epochs * per_epoch
    about = {
        "label": label,
        "settings": asdict(settings),
        "observations": fingerprint({"observations": observations}),
        "balance": balance,
    }
    kept = EpochCheckpoints(checkpoint, about, router.state_dict(), optimizer, generator)
    start = Progress(0, Best(-math.inf, 0, _copied(router)), [])
    finished, best, history = kept.restore_epoch(start)
    for epoch, known in enumerate(history, 1):
        _log(writer, known, epoch * len(observations))
    done = finished * per_epoch
    with tqdm(total=steps, desc=f"fitting {label}", delay=2, leave=False, disable=None) as bar:
        bar.update(done)
        for epoch in range(finished + 1, settings.epochs + 1):
            records = []
            order = epoch_rows(groups or [""] * len(observations), balance, generator)
            for rows in order.split(settings.batch_size):
                place = rows.to(observations.device)
                found = terms(place, router(observations[place]), done / steps)
                record = {name: value.item() for name, value in found.items()}
                if not math.isfinite(record["loss"]):
                    raise FloatingPointError(
                        f"loss {record['loss']} in epoch {epoch} of fitting the {label}; lower the"
                        " learning rate"
                    )
                optimizer.zero_grad(set_to_none=True)
                found["loss"].backward()
                optimizer.step()
                records.append(record)
                done += 1
                bar.update()
            reward = judge(router)
            means = {
                f"train/{name}": float(np.mean([record[name] for record in records]))
                for name in records[0]
            }
            history.append(means | {REWARD: reward})
            bar.set_postfix({"validation reward": f"{reward:.4f}"}, refresh=False)
            if reward > best.score:
                best = Best(reward, epoch, _copied(router))
            _log(writer, history[-1], epoch * len(observations))
            kept.write_epoch(Progress(epoch, best, history))
    router.load_state_dict(best.weights)
    router.eval().requires_grad_(False)
    rewards = [(epoch, known[REWARD]) for epoch, known in enumerate(history, 1)]
    return Fitted(rewards, best.epoch, best.score, judge.split)


def _log(writer: SummaryWriter | None, measured: dict[str, float], step: int) -> None:
    if writer is not None:
        for name, value in measured.items():
            writer.add_scalar(name, value, step)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
