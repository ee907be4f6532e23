"""The supervised router: a classifier of depths, trained on labels and on what a choice retrieves.

Notation: N training queries, B of one batch, D depths, h embedding width, M documents of one step.

A classifier over pooled attention (or any other observation), cross-entropy with labels by rule or
by oracle, plus a ranking loss through Gumbel-softmax: InfoNCE of the relevant documents against
sampled ones.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from agents.fitting import Judge, fit, router_settings
from agents.networks import new_router
from agents.ranking_loss import RankingLoss, straight_through
from agents.settings import SupervisedSettings
from maw_gym.attention.reference import pooled_state
from maw_gym.corpora import QuerySet
from maw_gym.envs.bandit import DEFAULT_REWARD, Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask

log = logging.getLogger(__name__)

RULE: Final = ((3, 5), (10, 15), (math.inf, 25))  # fewer relevant documents than, depth of 32
RULE_DEPTHS: Final = 32


class SupervisedClassificationRouter(nn.Module):
    """From the 5D attention to a depth: mean over depth, 8 x 8 pooling, classifier, argmax.

    Args:
        classifier: from standardised observations to D logits. Where its observation is the block
            `attention` alone, 5D tensors can be given; other blocks only as observations.
    """

    def __init__(self, classifier: DepthRouter) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, attention_weights_5d: Tensor, mask: Tensor | None = None) -> Tensor:
        """Depths (B,) int64 of attention (B, H, S, S, D) over tokens under mask (B, S)."""
        return self.attention_logits(attention_weights_5d, mask).argmax(-1)

    def attention_logits(self, attention_weights_5d: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, D) of attention (B, H, S, S, D).

        Args:
            attention_weights_5d: rows of real tokens sum to 1 over the keys.
            mask: (B, S) bool, real tokens first; None: all are real.

        Raises:
            InputError: the classifier's observation is not the block `attention`.
        """
        if self.classifier.observation != ("attention",):
            raise InputError(
                f"this router observes {', '.join(self.classifier.observation)}, which 5D"
                " attention does not give; use logits(observation)"
            )
        mean = attention_weights_5d.mean(-1)  # (B, H, S, S, D) -> (B, H, S, S)
        if mask is None:
            mask = torch.ones(mean.shape[0], mean.shape[-1], dtype=torch.bool, device=mean.device)
        return self.logits(pooled_state(mean, mask))  # (B, H, S, S) -> (B, 64 H) -> (B, D)

    def logits(self, observation: Tensor) -> Tensor:
        """Logits (B, D) of observations (B, O), such as a depth table's."""
        logits: Tensor = self.classifier(observation)
        return logits

    def predict(
        self,
        observation: NDArray[np.float32],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Depths of observations, as Stable-Baselines3's algorithms do; see `DepthRouter`."""
        return self.classifier.predict(observation, state, episode_start, deterministic)


def relevant_counts(queries: QuerySet) -> NDArray[np.int64]:
    """Number of documents (N,) graded above 0 for each query."""
    counts = [sum(grade > 0 for grade in grades.values()) for grades in queries.relevance]
    return np.array(counts, np.int64)


def rule_labels(counts: ArrayLike, depths: int) -> NDArray[np.int64]:
    """Labels (N,) by rule: the more relevant documents, the broader the depth.

    Fewer than 3 relevant documents: depth 5; fewer than 10: 15; else 25, of 32. With other numbers
    of depths these are ``floor(5 D / 32)`` and so on: the same place in the range.

    Args:
        counts: (N,) relevant documents of each query.
        depths: D.
    """
    scaled = np.array([depth * depths // RULE_DEPTHS for _, depth in RULE], np.int64)
    return scaled[np.searchsorted([limit for limit, _ in RULE], np.asarray(counts), side="right")]


def label_facts(labels: NDArray[np.int64], depths: int) -> dict[str, Any]:
    """How labels (N,) are spread over D depths.

    Returns:
        ``label_histogram``: number of queries by depth; ``label_most_common``: the depth;
        ``label_share_of_most_common``: its share; ``label_constant``: whether there is no other,
        so that nothing can be learned from the cross-entropy but this depth.
    """
    histogram = np.bincount(labels, minlength=depths)
    return {
        "label_histogram": histogram.tolist(),
        "label_most_common": int(histogram.argmax()),
        "label_share_of_most_common": float(histogram.max() / max(len(labels), 1)),
        "label_constant": bool((histogram > 0).sum() <= 1),
    }


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


def train_supervised(
    task: RetrievalTask,
    *,
    observation: Sequence[str] = ("attention",),
    network: str = "auto",
    reward: RewardSpec = DEFAULT_REWARD,
    settings: SupervisedSettings | None = None,
    seed: int = 0,
    balance: float = 1.0,
    writer: SummaryWriter | None = None,
    checkpoint: Path | None = None,
) -> tuple[DepthRouter, dict[str, Any]]:
    """Train a `SupervisedClassificationRouter` on the `train` queries.

    The epoch of largest mean reward on `validation` is kept (on `train` where there is no
    validation query).

    Args:
        task: with a MAW encoder.
        observation: blocks of the observation.
        network: see `agents.networks.is_shared`.
        reward: weights and alignment.
        settings: see `SupervisedSettings`; None are the defaults.
        seed: of weights, order, Gumbel noise and negatives.
        balance: exponent on the sizes of groups of queries: 1 learns from all queries alike, 0 from
            all groups alike.
        writer: gets ``train/loss``, ``train/cross_entropy``, ``train/ranking_loss``,
            ``train/temperature`` and ``eval/reward`` by epoch.
        checkpoint: see `agents.fitting.fit`.

    Returns:
        The router, and facts about labels (see `label_facts`) and the fit (see `Fitted`).

    Raises:
        InputError: a setting that does not exist or is out of its range, or no training query.
    """
    given = settings or SupervisedSettings()
    labels = given.labels
    bandit = Bandit(task.table("train"), observation, reward)
    table = bandit.table
    if not len(table):
        raise InputError(f"{task.collection.name!r} has no training query to learn from")
    targets = bandit.oracle
    if labels == "rule":
        counts = relevant_counts(task.collection.splits["train"])
        targets = rule_labels(counts, table.num_depths)
    facts: dict[str, Any] = {"labels": labels, **label_facts(targets, table.num_depths)}
    if facts["label_constant"]:
        log.info("the %s labels of all training queries are depth %d", labels, targets[0])

    generator = torch.Generator().manual_seed(seed)
    about = router_settings(task, f"supervised-{labels}", seed=seed)
    classifier = new_router(table, observation, network, about, generator)
    model = SupervisedClassificationRouter(classifier).to(task.device)
    target = torch.from_numpy(targets).to(task.device)
    ranking = RankingLoss(task, given.negatives, generator) if given.ranking_weight > 0 else None

    def terms(rows: Tensor, logits: Tensor, progress: float) -> dict[str, Tensor]:
        cross_entropy = nn.functional.cross_entropy(logits, target[rows])
        if ranking is None:
            return {"loss": cross_entropy, "cross_entropy": cross_entropy}
        temperature = given.temperature(progress)
        choice = straight_through(logits, temperature, generator)
        ranking_loss = ranking(rows, choice)
        return {
            "loss": cross_entropy + given.ranking_weight * ranking_loss,
            "cross_entropy": cross_entropy,
            "ranking_loss": ranking_loss,
            "temperature": torch.tensor(temperature),
        }

    fitted = fit(
        model.classifier,
        torch.tensor(bandit.observations, device=task.device),
        terms,
        Judge(task, observation, reward),
        given,
        generator,
        writer,
        f"supervised router ({labels} labels)",
        checkpoint,
        groups=table.groups,
        balance=balance,
    )
    return model.classifier, facts | fitted._asdict()
