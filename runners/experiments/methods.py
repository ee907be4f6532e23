"""The methods that experiments can run, by name: the one list that all runners and tables read.

A method is a function from a task, its specification, a split and a log to what it `Did`; a new row
of every table is such a function and one entry in `METHODS`.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final, NamedTuple

from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError
from maw_gym.settings import part
from maw_gym.tables.task import RetrievalTask
from runners.experiments.results import Did
from runners.experiments.routed import by_hindsight, by_rule, by_training, randomly
from runners.experiments.settings import (
    FullInformationSpec,
    GRPOSpec,
    OnlineSettings,
    PPOSpec,
    RouterSettings,
    SupervisedSpec,
    TaskSettings,
)
from runners.experiments.training import (
    Log,
    Trained,
    train_classifier,
    train_grpo,
    train_on_all_rewards,
    train_ppo,
)
from runners.experiments.unrouted import (
    EncoderSpec,
    bm25,
    ensemble,
    standard_attention,
    unrouted,
    with_bm25,
)

RANKINGS: Final = ("profile", "retrieval")  # observed by those that see rankings


def _for_ndcg(
    train: Callable[[RetrievalTask, Any, Log], Trained],
    task: RetrievalTask,
    spec: RouterSettings,
    log: Log,
) -> Trained:
    """Train on nDCG@10 alone; what the depths are worth is told by the table's own reward."""
    return train(task, replace(spec, alignment="ndcg", reward_weights=(0.0, 0.0, 1.0)), log)


def _plain(common: TaskSettings, task: RetrievalTask) -> TaskSettings:
    return part(TaskSettings, common)


def _trained_alike(common: TaskSettings, task: RetrievalTask) -> EncoderSpec:
    given = (task.encoder_provenance.get("training") or {}).get("settings") or {}
    return EncoderSpec(**asdict(_plain(common, task)), training=TrainingSettings(**given))


def _online(
    kind: type[OnlineSettings], common: OnlineSettings, task: RetrievalTask, **more: Any
) -> OnlineSettings:
    return kind(**asdict(common) | more)


def _offline(
    kind: Callable[..., RouterSettings], common: OnlineSettings, task: RetrievalTask, **more: Any
) -> RouterSettings:
    """As many training queries seen as the others have timesteps."""
    epochs = max(1, round(common.timesteps / len(task.table("train"))))
    return kind(**asdict(part(RouterSettings, common)) | more, epochs=epochs)


def _no_training_queries(task: RetrievalTask) -> str | None:
    return None if len(task.table("train")) else "there is no training query"


def _no_validation_queries(task: RetrievalTask) -> str | None:
    return None if task.collection.splits["validation"].ids else "there is no validation query"


class Method(NamedTuple):
    """A way to rank documents.

    Attributes:
        run: see the head of this module.
        kind: "ranker" (no encoder of ours), "encoder" (nothing is routed), "static" (a rule chooses
            the depth), "learner" (training chooses it), "oracle" (reads the answers).
        title: its name in the table of a single run.
        about: what it is, in a line.
        specify: its specification, from the task and the settings that the methods of a table
            share; learners want `OnlineSettings`, the others `TaskSettings`.
        seeded: whether it differs from seed to seed.
        cost: "dear" is left out by `--quick`.
        lacks: why it cannot run on a task; None where it can.
    """

    run: Callable[[RetrievalTask, Any, str, Log | None], Did]
    kind: str
    title: str
    about: str
    specify: Callable[[Any, RetrievalTask], TaskSettings] = _plain
    seeded: bool = False
    cost: str = "cheap"
    lacks: Callable[[RetrievalTask], str | None] = lambda task: None


METHODS: Final[dict[str, Method]] = {
    "bm25": Method(
        bm25, "ranker", "BM25", "BM25 (Lucene's, k1 1.2, b 0.75) over the whole collection"
    ),
    "mean-pooling": Method(
        partial(unrouted, "mean_pooling"),
        "encoder",
        "mean pooling",
        "mean of the token embeddings, no attention",
        _trained_alike,
    ),
    "non-maw-zero-shot": Method(
        partial(unrouted, "zero_shot"),
        "encoder",
        "zero-shot NON-MAW",
        "NON-MAW encoder, untrained",
        _trained_alike,
    ),
    "standard-attention": Method(
        standard_attention,
        "encoder",
        "standard attention",
        "the MAW encoder's own standard attention, which encodes its documents",
    ),
    "non-maw-trained": Method(
        partial(unrouted, "non_maw"),
        "encoder",
        "trained NON-MAW",
        "NON-MAW encoder, same pairs and optimiser steps as the MAW encoder's two stages",
        _trained_alike,
        cost="dear",
    ),
    "maw-single": Method(
        partial(unrouted, "single_depth"),
        "encoder",
        "single depth",
        "MAW encoder with one untied depth, same pairs and steps: nothing is chosen",
        _trained_alike,
        cost="dear",
    ),
    "ensemble": Method(
        ensemble,
        "encoder",
        "all depths",
        "the mean of all depths' embeddings: nothing is chosen, at the cost of every depth",
    ),
    "dense-bm25": Method(
        partial(with_bm25, "sum"),
        "ranker",
        "dense + BM25",
        "standard attention and BM25: sum of standardised scores, weighed on validation queries",
        lacks=_no_validation_queries,
    ),
    "dense-bm25-rrf": Method(
        partial(with_bm25, "ranks"),
        "ranker",
        "dense + BM25, RRF",
        "standard attention and BM25: reciprocal rank fusion",
    ),
    "random": Method(
        randomly, "static", "random depth", "a depth drawn uniformly for each query", seeded=True
    ),
    "best-fixed-reward": Method(
        partial(by_rule, "best_fixed"),
        "static",
        "best fixed depth (reward)",
        "the depth of largest mean reward on training queries",
        lacks=_no_training_queries,
    ),
    "best-fixed-ndcg": Method(
        partial(by_rule, "best_fixed_ndcg"),
        "static",
        "best fixed depth (nDCG@10)",
        "the depth of largest mean nDCG@10 on training queries",
        lacks=_no_training_queries,
    ),
    "observed-reward": Method(
        partial(by_rule, "observed_reward"),
        "static",
        "observed-reward rule",
        "the depth of largest reward, as far as entropy, focus and the depths' mean alignment on"
        " training queries tell",
        lacks=_no_training_queries,
    ),
    "rule-constant": Method(
        partial(by_rule, "rule"),
        "static",
        "the rule's constant",
        "the rule's most common label of training queries",
        lacks=_no_training_queries,
    ),
    "supervised-rule": Method(
        partial(by_training, train_classifier),
        "learner",
        "supervised-rule",
        "classifier on the rule's labels",
        partial(_offline, SupervisedSpec, labels="rule"),
        seeded=True,
    ),
    "supervised-oracle": Method(
        partial(by_training, train_classifier),
        "learner",
        "supervised-oracle",
        "classifier on each query's best depth",
        partial(_offline, SupervisedSpec, labels="oracle"),
        seeded=True,
    ),
    "full-information": Method(
        partial(by_training, train_on_all_rewards),
        "learner",
        "full information",
        "the same network on the rewards of all depths: no exploration",
        partial(_offline, FullInformationSpec),
        seeded=True,
    ),
    "full-ndcg": Method(
        partial(by_training, partial(_for_ndcg, train_on_all_rewards)),
        "learner",
        "full information, nDCG@10",
        "the same, paid for nDCG@10 alone",
        partial(_offline, FullInformationSpec),
        seeded=True,
    ),
    "full-ndcg-retrieval": Method(
        partial(by_training, partial(_for_ndcg, train_on_all_rewards)),
        "learner",
        "full information, nDCG@10, sees rankings",
        "the same, and it sees what the ranking through each depth looks like",
        partial(_offline, FullInformationSpec, observation=RANKINGS),
        seeded=True,
    ),
    "ppo": Method(
        partial(by_training, train_ppo),
        "learner",
        "PPO",
        "PPO of Stable-Baselines3",
        partial(_online, PPOSpec),
        seeded=True,
    ),
    "grpo": Method(
        partial(by_training, train_grpo),
        "learner",
        "GRPO",
        "GRPO",
        partial(_online, GRPOSpec),
        seeded=True,
    ),
    "grpo-retrieval": Method(
        partial(by_training, train_grpo),
        "learner",
        "GRPO, sees rankings",
        "GRPO that also sees what the ranking through each depth looks like, without judgments",
        partial(_online, GRPOSpec, observation=RANKINGS),
        seeded=True,
    ),
    "oracle": Method(
        partial(by_hindsight, "reward"),
        "oracle",
        "oracle (reward), upper bound",
        "the depth of largest reward on the test query itself",
    ),
    "oracle-ndcg": Method(
        partial(by_hindsight, "nDCG@10"),
        "oracle",
        "oracle (nDCG@10), upper bound",
        "the depth of largest nDCG@10 on the test query itself",
    ),
}


def check_methods(names: Sequence[str]) -> None:
    """Refuse names that are no method, or that are given twice.

    Raises:
        InputError: with the nearest name.
    """
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            question = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown method {name!r}: {question}choose from {', '.join(METHODS)}")
    if len(set(names)) != len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise InputError(f"method {twice!r} is given twice")
