"""The methods that experiments can run, by name: the one list that all runners and tables read.

A new row of every table is a function of `maw_gym.runners.experiments.result` and one `Method`, in
`METHODS` or given to `compare`; a learner may also be given as it is, see `method_of`.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from maw_gym.agents.grpo.settings import GRPOSettings
from maw_gym.agents.settings import (
    FitSettings,
    FullInformationSettings,
    PPOSettings,
    SupervisedSettings,
)
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.bandit import NDCG
from maw_gym.errors import InputError, did_you_mean
from maw_gym.runners.experiments.command_line import changed
from maw_gym.runners.experiments.result import (
    Learner,
    Result,
    bm25,
    by_hindsight,
    by_rule,
    by_training,
    ensemble,
    randomly,
    standard_attention,
    unrouted,
    with_bm25,
)
from maw_gym.runners.experiments.settings import Spec
from maw_gym.runners.experiments.training import Log, Trained, imported, train_on_all_rewards
from maw_gym.runners.train_grpo import train_grpo
from maw_gym.runners.train_ppo import train_ppo
from maw_gym.runners.train_supervised import train_classifier
from maw_gym.tables.task import RetrievalTask


def _untaught(common: Spec, task: RetrievalTask) -> Spec:
    return replace(common, online=None)


class Method(NamedTuple):
    """A way to rank documents.

    Attributes:
        name: on the command line and in tables.
        kind: "ranker" (no encoder of ours), "encoder" (nothing is routed), "static" (a rule chooses
            the depth), "learner" (training chooses it), "oracle" (reads the answers).
        run: gives the result for a task, a specification, a split and, where it trains, a log.
        about: what it is, in a line.
        specify: its specification, from what the methods of a table share and the task.
        seeded: whether it differs from seed to seed.
        slow: `--quick` leaves it out: it trains an encoder, or is much like another one.
        needs: the split without whose queries it cannot run.
    """

    name: str
    kind: str
    run: Callable[[RetrievalTask, Spec, str, Log | None], Result]
    about: str
    specify: Callable[[Spec, RetrievalTask], Spec] = _untaught
    seeded: bool = False
    slow: bool = False
    needs: str | None = None

    def missing(self, task: RetrievalTask) -> str | None:
        """Why it cannot run on a task, if so."""
        if self.needs is None or task.collection.splits[self.needs].ids:
            return None
        return f"there is no {self.needs} query"


def _encoder(name: str, encoder: str, about: str, slow: bool = False) -> Method:
    """An encoder to compare with, trained as the task's was."""

    def specify(common: Spec, task: RetrievalTask) -> Spec:
        given = (task.encoder_provenance.get("training") or {}).get("settings") or {}
        return replace(common, online=None, learner=TrainingSettings(**given))

    return Method(name, "encoder", partial(unrouted, encoder), about, specify, slow=slow)


def _rule(name: str, rule: str, about: str) -> Method:
    return Method(name, "static", partial(by_rule, rule), about, needs="train")


def _learner(
    name: str, train: Learner, settings: Any, about: str, slow: bool = False, **seen: Any
) -> Method:
    """A learner with these settings, and others of the task than those that methods share."""

    def specify(common: Spec, task: RetrievalTask) -> Spec:
        spec = Spec(replace(common.task, **seen), common.online, settings)
        if isinstance(settings, FitSettings) and common.online:
            # As many training queries seen as the others have timesteps.
            epochs = max(1, round(common.online.timesteps / len(task.table("train"))))
            spec = replace(spec, online=None, learner=replace(settings, epochs=epochs))
        return spec

    run = partial(by_training, train)
    return Method(name, "learner", run, about, specify, seeded=True, slow=slow, needs="train")


def _for_ndcg(task: RetrievalTask, spec: Spec, log: Log) -> Trained:
    """Trained on nDCG@10 alone; what the depths are worth is told by the table's own reward."""
    paid = changed(spec, alignment="ndcg", reward_weights=NDCG.weights)
    return train_on_all_rewards(task, paid, log)


GRPO, PPO, ALL_REWARDS = GRPOSettings(), PPOSettings(), FullInformationSettings()
RULE, ORACLE = SupervisedSettings(labels="rule"), SupervisedSettings(labels="oracle")
SEEN: Final[dict[str, Any]] = {"observation": ("profile", "retrieval"), "slow": True}
SEES: Final = "that also sees what the ranking through each depth looks like, without judgments"
STANDARD: Final = "the MAW encoder's own standard attention, which encodes its documents"
WEIGHED: Final = "standard attention and BM25: sum of scores, weighed on validation queries"
RANKS: Final = "standard attention and BM25: reciprocal rank fusion"
OBSERVED: Final = "the depth of largest reward as far as entropy, focus and training queries tell"
NON_MAW: Final = "NON-MAW encoder, same pairs and optimiser steps as the MAW encoder's two stages"
ALONE: Final = "MAW encoder with one untied depth, same pairs and steps: nothing is chosen"
MEAN: Final = "the mean of all depths' embeddings: nothing is chosen, at the cost of every depth"
FULL: Final = "the same network on the rewards of all depths: no exploration"

_ALL: Final = (
    Method("bm25", "ranker", bm25, "BM25 (Lucene's, k1 1.2, b 0.75) over the whole collection"),
    _encoder("mean-pooling", "mean_pooling", "mean of the token embeddings, no attention", True),
    _encoder("non-maw-zero-shot", "zero_shot", "NON-MAW encoder, untrained"),
    Method("standard-attention", "encoder", standard_attention, STANDARD),
    _encoder("non-maw-trained", "non_maw", NON_MAW, slow=True),
    _encoder("maw-single", "single_depth", ALONE, slow=True),
    Method("ensemble", "encoder", ensemble, MEAN, slow=True),
    Method("dense-bm25", "ranker", partial(with_bm25, "sum"), WEIGHED, needs="validation"),
    Method("dense-bm25-rrf", "ranker", partial(with_bm25, "ranks"), RANKS, slow=True),
    Method("random", "static", randomly, "a depth drawn uniformly for each query", seeded=True),
    _rule("best-fixed-reward", "best_fixed", "the depth of largest mean training reward"),
    _rule("best-fixed-ndcg", "best_fixed_ndcg", "the depth of largest mean training nDCG@10"),
    _rule("observed-reward", "observed_reward", OBSERVED),
    _rule("rule-constant", "rule", "the rule's most common label of training queries"),
    _learner("supervised-rule", train_classifier, RULE, "classifier on the rule's labels"),
    _learner("supervised-oracle", train_classifier, ORACLE, "classifier on the best depths", True),
    _learner("full-information", train_on_all_rewards, ALL_REWARDS, FULL),
    _learner("full-ndcg", _for_ndcg, ALL_REWARDS, "the same, paid for nDCG@10 alone"),
    _learner("full-ndcg-retrieval", _for_ndcg, ALL_REWARDS, f"one {SEES}", **SEEN),
    _learner("ppo", train_ppo, PPO, "PPO of Stable-Baselines3"),
    _learner("grpo", train_grpo, GRPO, "GRPO"),
    _learner("grpo-retrieval", train_grpo, GRPO, f"GRPO {SEES}", **SEEN),
    Method(
        "oracle", "oracle", partial(by_hindsight, "reward"), "each query's depth of largest reward"
    ),
    Method(
        "oracle-ndcg", "oracle", partial(by_hindsight, "nDCG@10"), "likewise of largest nDCG@10"
    ),
)
METHODS: Final = {method.name: method for method in _ALL}


def chosen_methods(
    given: Iterable[str | Method | Learner], baseline: str | None = None
) -> dict[str, Method]:
    """Methods by name, the baseline among them, in the order of `METHODS`.

    Raises:
        InputError: a name that is no method, or one that is given twice.
    """
    found: dict[str, Method] = {}
    for method in map(method_of, given):
        if method.name in found:
            raise InputError(f"method {method.name!r} is given twice")
        found[method.name] = method
    if baseline is not None and baseline not in found:
        found[baseline] = method_of(baseline)
    return {name: found[name] for name in dict.fromkeys([*METHODS, *found]) if name in found}


def method_of(given: str | Method | Learner) -> Method:
    """A method by its name; or a learner of one's own, or "module:name" of one, as a method.

    Such a learner is called with a task, a specification (`spec.task.observation`,
    `spec.task.seed`, `spec.online.timesteps`, ...) and a log with a folder to write to, and gives
    back whatever has Stable-Baselines3's `predict`.
    """
    if isinstance(given, str) and given in METHODS:
        return METHODS[given]
    if isinstance(given, str):
        if ":" not in given:
            raise InputError(
                f"unknown method {given!r}: {did_you_mean(given, METHODS)}choose from"
                f" {', '.join(METHODS)}, or give module:name of a learner of your own"
            )
        given = imported(given, "learner")
    if isinstance(given, Method):
        return given
    if not (inspect.isfunction(given) or inspect.isclass(given)) or given.__name__ in METHODS:
        raise InputError(
            f"a learner is a function or a class with a name of its own, got {given!r}"
        )
    source = None
    with suppress(OSError):  # typed into an interpreter that keeps no text
        # It is trained again where its source has changed.
        source = hashlib.sha256(inspect.getsource(given).encode()).hexdigest()
    about = (inspect.getdoc(given) or given.__name__).partition("\n")[0].rstrip(".")
    return _learner(given.__name__, given, source, about)
