"""Training a learner that needs no environment, with the log of those that act in one."""

from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.tensorboard import SummaryWriter

from agents.baselines import train_full_information
from agents.settings import FullInformationSettings, SupervisedSettings
from agents.supervised import train_supervised
from maw_gym.checkpoints import forget_checkpoints, stage_folder
from maw_gym.envs.bandit import NDCG, Bandit
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.settings import part
from maw_gym.tables.task import RetrievalTask
from runners.experiments.online import Log, Trained
from runners.experiments.settings import FullInformationSpec, RouterSettings, SupervisedSpec

ROUTER: Final = "router.safetensors"


def train_classifier(task: RetrievalTask, spec: SupervisedSpec, log: Log) -> Trained:
    """A router trained on labels.

    Its last finished epoch is kept in the folder until `forget_training`. The events of a training
    that goes on are written anew, those before the stop included.
    """
    if not log.resume:
        forget_training(log.folder)
    for events in log.folder.glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(log.folder)) as writer:
        router, facts = train_supervised(
            task,
            labels=spec.labels,
            observation=spec.observation,
            network=spec.network,
            reward=spec.reward,
            settings=part(SupervisedSettings, spec),
            seed=spec.seed,
            balance=spec.balance,
            writer=writer,
            checkpoint=stage_folder(log.folder / ROUTER, "training"),
        )
        return _trained(task, spec, router, facts, writer)


def train_on_all_rewards(task: RetrievalTask, spec: FullInformationSpec, log: Log) -> Trained:
    """A router trained on the rewards of all depths."""
    with SummaryWriter(str(log.folder)) as writer:
        router, facts = train_full_information(
            task,
            observation=spec.observation,
            network=spec.network,
            reward=spec.reward,
            settings=part(FullInformationSettings, spec),
            seed=spec.seed,
            balance=spec.balance,
            writer=writer,
        )
        return _trained(task, spec, router, facts, writer)


def forget_training(folder: Path) -> None:
    """Delete what a training keeps to go on from."""
    forget_checkpoints(folder / ROUTER)


def _trained(
    task: RetrievalTask,
    spec: RouterSettings,
    router: DepthRouter,
    facts: dict[str, Any],
    writer: SummaryWriter,
) -> Trained:
    """The training, counted in training queries seen, as timesteps are; logs what was chosen."""
    queries = len(task.table("train"))
    history = [(epoch * queries, reward) for epoch, reward in facts.pop("history")]
    chosen_at = facts["best_epoch"] * queries
    bandit = Bandit(task.table("validation"), spec.observation, spec.reward)
    if len(bandit):
        depths, _ = router.predict(bandit.observations)
        summary = bandit.summary(depths)
        writer.add_scalar("eval/regret", summary.oracle - summary.mean, chosen_at)
        if summary.gap_closed is not None:
            writer.add_scalar("eval/gap_closed", summary.gap_closed, chosen_at)
        ndcg = Bandit(bandit.table, reward=NDCG).mean(depths)
        writer.add_scalar("eval/ndcg@10", ndcg, chosen_at)
        writer.add_histogram("policy/depths", torch.from_numpy(depths), chosen_at)
    return Trained(router, history, chosen_at, facts)
