"""Methods that choose a depth for each query: by rule, by hindsight and by training."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.baselines import random_depths, static_router
from maw_gym.envs.bandit import NDCG, Bandit
from maw_gym.retrieval.index import SearchIndex
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.task import RetrievalTask
from runners.experiments.results import Did, size
from runners.experiments.settings import RouterSettings, TaskSettings
from runners.experiments.training import Log, Trained


def randomly(task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None) -> Did:
    """A depth drawn for each query."""
    table = task.table(split)
    depths = random_depths(len(table), table.num_depths, np.random.default_rng(spec.seed))
    return by_depths(task, depths)


def by_rule(name: str, task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None) -> Did:
    """A rule of `agents.baselines`."""
    return by_router(task, static_router(name, task, spec.reward), split)


def by_hindsight(
    by: str, task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None
) -> Did:
    """Each query's best depth, by its reward or by its nDCG@10."""
    bandit = Bandit(task.table(split), reward=NDCG if by == "nDCG@10" else spec.reward)
    return by_depths(task, bandit.oracle, encode=False)


def by_training(
    train: Callable[[RetrievalTask, Any, Log], Trained],
    task: RetrievalTask,
    spec: RouterSettings,
    split: str,
    log: Log | None,
) -> Did:
    """The depths of a learner's router."""
    assert log is not None
    start = time.perf_counter()
    trained = train(task, spec, log)
    seconds = time.perf_counter() - start
    did = by_router(task, trained.router, split)
    assert did.parameters is not None
    did.parameters += size(trained.router)
    did.trained, did.training_seconds, did.facts = trained, seconds, trained.facts
    return did


def by_router(task: RetrievalTask, router: DepthRouter, split: str) -> Did:
    """The depths that a router prefers."""
    table = task.table(split)
    depths, _ = router.to(task.device).predict(table.observation(router.observation))
    did = by_depths(task, depths)
    did.router = router
    if "depth" not in router.settings:  # of a fixed one there is nothing to look at
        routed = RoutedEncoder(task.embedder, router, task.collection.name, task.device)
        # Of use where the router looks at what a search finds; its searches are part of its cost.
        routed.documents = SearchIndex(task.index, task.embedder.fingerprint())
        did.encode = routed.encode_query
    return did


def by_depths(task: RetrievalTask, depths: NDArray[np.int64], encode: bool = True) -> Did:
    """Depths that nobody had to look at the query for."""
    first = torch.from_numpy(depths[:1])
    return Did(
        depths=depths,
        parameters=size(task.embedder.encoder),
        encode=(lambda texts: task.embedder.encode_queries(texts, first).cpu()) if encode else None,
    )
