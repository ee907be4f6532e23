"""Choices of depth that no learner explores for: what routing by reinforcement has to beat.

They are routers of a single linear layer, saved, loaded, timed and evaluated like learned ones. The
observed-reward rule is the one to beat: where entropy and focus of every depth are observed, most
of the reward is known before anything is learned.
"""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from maw_gym.agents.networks import router_settings
from maw_gym.agents.supervised import label_facts, relevant_counts, rule_labels
from maw_gym.envs.bandit import DEFAULT_REWARD, NDCG, Bandit, RewardSpec
from maw_gym.errors import InputError, checked_int, one_of
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask

STATIC: Final = ("best_fixed", "best_fixed_ndcg", "observed_reward", "rule")


def static_router(
    name: str, task: RetrievalTask, reward: RewardSpec = DEFAULT_REWARD
) -> DepthRouter:
    """The static baseline of a name.

    - ``best_fixed``: the depth of largest mean reward on training queries.
    - ``best_fixed_ndcg``: that of largest mean nDCG@10.
    - ``observed_reward``: the depth of largest reward as far as it can be seen, for weights w
      ``argmax over d of w_entropy entropy_d + w_focus focus_d + w_alignment a_d``: entropy and
      focus of the query's own attention (the block `profile`), and a_d the mean alignment of depth
      d on training queries.
    - ``rule``: the most common label by rule of training queries, see `.supervised`.

    Args:
        name: one of `STATIC`.
        task: with a MAW encoder.
        reward: weights and alignment.

    Raises:
        InputError: another name, or no training query.
    """
    one_of("baseline", name, STATIC)
    if name == "rule":
        depths = task.embedder.maw.depths
        labels = rule_labels(relevant_counts(task.collection.splits["train"]), depths)
        return fixed_router(task, label_facts(labels, depths)["label_most_common"], name)
    table = task.table("train")
    if not len(table):
        raise InputError(f"{task.collection.name!r} has no training query to choose a depth on")
    bandit = Bandit(table, reward=NDCG if name == "best_fixed_ndcg" else reward)
    if name != "observed_reward":
        return fixed_router(task, bandit.best_fixed(), name)
    alignment = bandit.terms["alignment"].mean(axis=0, dtype=np.float64)
    depth = torch.eye(bandit.num_depths)
    weight = torch.cat([reward.blend(depth, 0, 0), reward.blend(0, depth, 0)], 1)
    bias = torch.from_numpy(reward.blend(0, 0, alignment)).float()
    return _linear(weight, bias, "profile", router_settings(task, name))


def fixed_router(task: RetrievalTask, depth: int, learner: str = "fixed") -> DepthRouter:
    """A router to one depth in [0, D), whatever it sees; `learner` names it in its settings."""
    depths = task.embedder.maw.depths
    depth = checked_int(depth, "depth", 0, depths - 1)
    weight, bias = torch.zeros(depths, task.embedder.text.width), torch.eye(depths)[depth]
    # `content` is the cheapest block to compute, and the router ignores it.
    return _linear(weight, bias, "content", router_settings(task, learner, depth=depth))


def _linear(weight: Tensor, bias: Tensor, block: str, settings: dict[str, Any]) -> DepthRouter:
    inputs = weight.shape[1]
    mean, scale = torch.zeros(inputs), torch.ones(inputs)
    router = DepthRouter([(weight, bias)], "relu", mean, scale, (block,), settings)
    return router.eval().requires_grad_(False)
