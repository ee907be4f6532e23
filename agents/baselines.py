"""Choices of depth that no learner explores for: what routing by reinforcement has to beat.

The static ones are routers too (a single linear layer), so that they are saved, loaded, timed and
evaluated like learned ones. The oracle is not among them: it reads the answers.

The observed-reward rule is the one to beat by learning: where entropy and focus of every depth are
observed, most of the reward is known before anything is learned.

Notation: N queries, O observed numbers, D depths.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.fitting import Judge, fit, router_settings
from agents.networks import new_router
from agents.settings import FullInformationSettings
from agents.supervised import label_facts, relevant_counts, rule_labels
from maw_gym.envs.bandit import DEFAULT_REWARD, NDCG, Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask

STATIC: Final = ("best_fixed", "best_fixed_ndcg", "observed_reward", "rule")


def random_depths(queries: int, depths: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Depths (N,) drawn uniformly and independently."""
    return generator.integers(depths, size=queries)


def fixed_router(task: RetrievalTask, depth: int, learner: str = "fixed") -> DepthRouter:
    """A router to one depth, whatever it sees.

    Args:
        task: with a MAW encoder.
        depth: in [0, D).
        learner: name in the router's settings.

    Raises:
        InputError: there is no such depth.
    """
    encoder = task.embedder.maw
    if not 0 <= depth < encoder.depths:
        raise InputError(f"depth must be from 0 to {encoder.depths - 1}, got {depth}")
    weight = torch.zeros(encoder.depths, task.embedder.text.width)
    bias = torch.nn.functional.one_hot(torch.tensor(depth), encoder.depths).float()
    # `content` is the cheapest block to compute, and the router ignores it.
    return _linear(weight, bias, "content", router_settings(task, learner, depth=int(depth)))


def best_fixed_router(
    task: RetrievalTask, reward: RewardSpec = DEFAULT_REWARD, learner: str = "best_fixed"
) -> DepthRouter:
    """The depth of largest mean reward on training queries; with the reward `NDCG`, of nDCG@10.

    Raises:
        InputError: no training query.
    """
    return fixed_router(task, _training_bandit(task, reward).best_fixed(), learner)


def observed_reward_router(task: RetrievalTask, reward: RewardSpec = DEFAULT_REWARD) -> DepthRouter:
    """The depth of largest reward, as far as it can be seen; nothing is learned.

    For weights w: ``argmax over d of w_entropy entropy_d + w_focus focus_d + w_alignment a_d``, the
    entropy and focus of the query's own attention (the block `profile`), and a_d the mean alignment
    of depth d on training queries.

    Raises:
        InputError: no training query.
    """
    bandit = _training_bandit(task, reward)
    alignment = bandit.terms["alignment"].mean(axis=0, dtype=np.float64)
    depths = torch.eye(bandit.num_depths)
    weight = torch.cat([reward.blend(depths, 0, 0), reward.blend(0, depths, 0)], 1)
    bias = torch.from_numpy(reward.blend(0, 0, alignment)).float()
    return _linear(weight, bias, "profile", router_settings(task, "observed_reward"))


def _training_bandit(task: RetrievalTask, reward: RewardSpec) -> Bandit:
    table = task.table("train")
    if not len(table):
        raise InputError(f"{task.collection.name!r} has no training query to choose a depth on")
    return Bandit(table, reward=reward)


def rule_depths(task: RetrievalTask, split: str) -> NDArray[np.int64]:
    """What the rule says (N,) of each query of a split.

    This reads the judgments, so it is no router: it tells how good the labels are.
    """
    counts = relevant_counts(task.collection.splits[split])
    return rule_labels(counts, task.embedder.maw.depths)


def rule_router(task: RetrievalTask) -> DepthRouter:
    """The rule's most common label of training queries, for every query.

    Of what the rule knows this is all that can be used where judgments are missing; where nearly
    every query has one relevant document it is also all that a classifier can learn from it.
    """
    labels = rule_depths(task, "train")
    facts = label_facts(labels, task.embedder.maw.depths)
    return fixed_router(task, facts["label_most_common"], "rule")


def static_router(
    name: str, task: RetrievalTask, reward: RewardSpec = DEFAULT_REWARD
) -> DepthRouter:
    """The static baseline called `name`, one of `STATIC`.

    Raises:
        InputError: another name, or a baseline that this task cannot have.
    """
    if name in ("best_fixed", "best_fixed_ndcg"):
        return best_fixed_router(task, NDCG if name == "best_fixed_ndcg" else reward, name)
    if name == "observed_reward":
        return observed_reward_router(task, reward)
    if name == "rule":
        return rule_router(task)
    raise InputError(f"unknown baseline {name!r}; choose one of {', '.join(STATIC)}")


def train_full_information(
    task: RetrievalTask,
    *,
    observation: Sequence[str] = ("attention",),
    network: str = "auto",
    reward: RewardSpec = DEFAULT_REWARD,
    settings: FullInformationSettings | None = None,
    seed: int = 0,
    balance: float = 1.0,
    writer: SummaryWriter | None = None,
) -> tuple[DepthRouter, dict[str, Any]]:
    """Train the router that sees the reward of every depth and need not explore.

    Same network as GRPO's, same observations, same queries; the loss is minus the policy's expected
    reward ``sum_d pi(d | x) r(x, d)``, computed exactly, minus an entropy bonus. The epoch is
    chosen on validation queries.
    What it does not reach, no learner with this network and these observations can be blamed for
    missing.

    Args:
        task: with a MAW encoder.
        observation: blocks of the observation.
        network: see `agents.networks.is_shared`.
        reward: weights and alignment.
        settings: see `FullInformationSettings`; None are the defaults.
        seed: of weights and order.
        balance: exponent on the sizes of groups of queries: 1 learns from all queries alike, 0 from
            all groups alike.
        writer: gets ``train/loss``, ``train/expected_reward``, ``train/entropy`` and
            ``eval/reward`` by epoch.

    Returns:
        The router, and facts about the fit (see `agents.fitting.Fitted`).

    Raises:
        InputError: a setting that does not exist or is out of its range, or no training query.
    """
    given = settings or FullInformationSettings()
    bandit = Bandit(task.table("train"), observation, reward)
    if not len(bandit):
        raise InputError(f"{task.collection.name!r} has no training query to learn from")
    generator = torch.Generator().manual_seed(seed)
    about = router_settings(task, "full_information", seed=seed)
    router = new_router(bandit.table, observation, network, about, generator)
    router = router.to(task.device)
    rewards = torch.tensor(bandit.rewards, device=task.device)
    advantage = standardised(rewards)

    def terms(rows: Tensor, logits: Tensor, progress: float) -> dict[str, Tensor]:
        del progress
        return full_information_terms(logits, rewards[rows], advantage[rows], given.ent_coef)

    fitted = fit(
        router,
        torch.tensor(bandit.observations, device=task.device),
        terms,
        Judge(task, observation, reward),
        given,
        generator,
        writer,
        "full-information router",
        groups=bandit.table.groups,
        balance=balance,
    )
    return router, fitted._asdict()


def standardised(reward: Tensor) -> Tensor:
    """Reward (N, D) minus each query's mean, over the standard deviation of all that is left.

    The best policy stays the same: a query's mean is the same for every depth, and one factor
    serves all queries. Without it the weights of the reward would act as a learning rate.
    """
    centred = reward - reward.mean(1, keepdim=True)
    return centred / centred.std(correction=0).clamp(min=1e-6)


def full_information_terms(
    logits: Tensor, reward: Tensor, advantage: Tensor, ent_coef: float
) -> dict[str, Tensor]:
    """Loss of a softmax policy under full information, and what is logged of it.

    Args:
        logits: (B, D).
        reward: (B, D).
        advantage: (B, D), see `standardised`.
        ent_coef: weight of the entropy bonus.

    Returns:
        ``loss``: minus the expected advantage minus ent_coef times the policy's entropy;
        ``expected_reward`` and ``entropy``; means over queries.
    """
    log_policy = logits.log_softmax(-1)
    policy = log_policy.exp()
    entropy = -(policy * log_policy).sum(-1).mean()
    loss = -(policy * advantage).sum(-1).mean() - ent_coef * entropy
    expected = (policy * reward).sum(-1).mean().detach()
    return {"loss": loss, "expected_reward": expected, "entropy": entropy.detach()}


def _linear(weight: Tensor, bias: Tensor, block: str, settings: dict[str, Any]) -> DepthRouter:
    inputs = weight.shape[1]
    mean, scale = torch.zeros(inputs), torch.ones(inputs)
    router = DepthRouter([(weight, bias)], "relu", mean, scale, (block,), settings)
    return router.eval().requires_grad_(False)
