"""Train a supervised router: labels by the source text's rule or by the oracle, no exploration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.tensorboard import SummaryWriter

from agents.baselines import train_full_information
from agents.fitting import FitSettings
from agents.supervised import LABELS, SupervisedSettings, train_supervised
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.files.epoch_checkpoints import forget_checkpoints, stage_file
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.rewards import NDCG
from maw_gym.tables.task import RetrievalTask
from runners.experiments.online import Trained
from runners.experiments.runs import run_main
from runners.experiments.settings import CommonSettings
from runners.experiments.training import train_and_report

ROUTER: Final = "router.safetensors"


@dataclass(frozen=True)
class SupervisedRunSettings(SupervisedSettings, CommonSettings):
    """Settings of a supervised run; see `agents.supervised`."""

    labels: str = "oracle"
    """rule (by the number of relevant documents) or oracle (the best depth of each query)"""
    resume: Path | None = None
    """folder of a run that was stopped: go on with it, under its own settings"""

    def check(self) -> None:
        """Refuse what can be refused before any work starts."""
        CommonSettings.check(self)
        SupervisedSettings.check(self)
        if self.labels not in LABELS:
            raise InputError(f"unknown labels {self.labels!r}; choose one of {', '.join(LABELS)}")


def train_fitted(
    task: RetrievalTask,
    common: CommonSettings,
    settings: FitSettings,
    labels: str | None,
    folder: Path,
    checkpoint: Path | None = None,
) -> tuple[Trained, dict[str, Any]]:
    """Train a router that needs no environment, with the tags of the learners that do.

    Args:
        task: of the run.
        common: observation, reward and seed.
        settings: `SupervisedSettings`; without labels `agents.baselines.FullInformationSettings`.
        labels: "rule", "oracle", or None for the full-information router.
        folder: gets the TensorBoard events.
        checkpoint: with labels, the file that holds the last finished epoch, see
            `agents.fitting.fit`. The events are then written anew, those before it included.

    Returns:
        The router, whose history counts the training queries seen, as timesteps are counted; and
        facts about labels and fit.
    """
    queries = len(task.table("train"))
    if checkpoint is not None:
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
    with SummaryWriter(str(folder)) as writer:
        arguments: dict[str, Any] = {
            "observation": common.observation,
            "network": common.network,
            "reward": common.reward,
            "settings": settings,
            "seed": common.seed,
            "writer": writer,
        }
        router, facts = (
            train_full_information(task, **arguments)
            if labels is None
            else train_supervised(task, labels=labels, checkpoint=checkpoint, **arguments)
        )
        history = [(epoch * queries, reward) for epoch, reward in facts.pop("history")]
        trained = Trained(router, history, facts["best_epoch"] * queries)
        _log_choice(writer, task, common, router, trained.chosen_at)
    return trained, facts


def _log_choice(
    writer: SummaryWriter,
    task: RetrievalTask,
    common: CommonSettings,
    router: DepthRouter,
    step: int,
) -> None:
    """Log what the chosen router does on validation queries, under the tags of online learners."""
    bandit = Bandit(task.table("validation"), common.observation, common.reward)
    if not len(bandit):
        return
    depths, _ = router.predict(bandit.observations)
    summary = bandit.summary(depths)
    writer.add_scalar("eval/regret", summary.oracle - summary.mean, step)
    if summary.gap_closed is not None:
        writer.add_scalar("eval/gap_closed", summary.gap_closed, step)
    writer.add_scalar("eval/ndcg@10", Bandit(bandit.table, reward=NDCG).mean(depths), step)
    writer.add_histogram("policy/depths", torch.from_numpy(depths), step)


def label_sentence(facts: Mapping[str, Any]) -> str:
    """What the labels were, in words; a constant label is no lesson, and is called so."""
    depth, share = facts["label_most_common"], facts["label_share_of_most_common"]
    used = sum(count > 0 for count in facts["label_histogram"])
    if facts["label_constant"]:
        return (
            f"the {facts['labels']} labels are a CONSTANT: depth {depth} for every training query;"
            " there is nothing to classify"
        )
    return (
        f"the {facts['labels']} labels use {used} of {len(facts['label_histogram'])} depths; the"
        f" most common, depth {depth}, is that of {share:.1%} of the training queries"
    )


def main(settings: SupervisedRunSettings) -> None:
    """Train, judge on the test split, and leave a run folder."""
    settings.check()

    def train(task: RetrievalTask, folder: Path) -> tuple[Trained, Mapping[str, Any]]:
        if settings.resume is None:
            forget_checkpoints(folder / ROUTER)
        place = stage_file(folder / ROUTER, "training")
        trained, facts = train_fitted(task, settings, settings, settings.labels, folder, place)
        print(f"\nlabels: {label_sentence(facts)}")
        return trained, facts

    folder = train_and_report(settings, f"supervised-{settings.labels}", train)
    # Only now: a run that was stopped in its report has nothing to train again.
    forget_checkpoints(folder / ROUTER)


if __name__ == "__main__":
    run_main(SupervisedRunSettings, main)
