"""The methods that experiments can run, by name: the one list that all runners and tables read.

A new row of every table is a function of `maw_gym.runners.experiments.result` and one `Method`, in
`METHODS` or given to `compare`; a learner may also be given as it is, see `method_of`.
"""

import difflib
import hashlib
import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.bandit import NDCG
from maw_gym.errors import InputError
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
from maw_gym.runners.experiments.settings import (
    CommonSpec,
    FullInformationSpec,
    GRPOSpec,
    OnlineSettings,
    PPOSpec,
    Spec,
    SupervisedSpec,
    TaskSettings,
)
from maw_gym.runners.experiments.training import Log, Trained, imported, train_on_all_rewards
from maw_gym.runners.train_grpo import train_grpo
from maw_gym.runners.train_ppo import train_ppo
from maw_gym.runners.train_supervised import train_classifier
from maw_gym.settings import checked
from maw_gym.tables.task import RetrievalTask


@checked
class EncoderSpec:
    """All that an encoder without routing depends on."""

    task: TaskSettings = TaskSettings()
    training: TrainingSettings = TrainingSettings()
    """as long and as wide as the MAW encoder's"""


@checked
class OwnSpec:
    """All that a learner from outside depends on."""

    task: TaskSettings = TaskSettings()
    online: OnlineSettings = OnlineSettings()
    source: str = ""
    """sha256 of its source, so that it is trained again where that has changed"""


def _plain(common: CommonSpec, task: RetrievalTask) -> Spec:
    return Spec(common.task)


def _trained_alike(common: CommonSpec, task: RetrievalTask) -> EncoderSpec:
    given = (task.encoder_provenance.get("training") or {}).get("settings") or {}
    return EncoderSpec(common.task, TrainingSettings(**given))


def _online(kind: Callable[..., Any], common: CommonSpec, task: RetrievalTask, **more: Any) -> Any:
    return kind(replace(common.task, **more), common.online)


def _offline(kind: Callable[..., Any], common: CommonSpec, task: RetrievalTask, **more: Any) -> Any:
    """As many training queries seen as the others have timesteps."""
    epochs = max(1, round(common.online.timesteps / len(task.table("train"))))
    return changed(kind(common.task), epochs=epochs, **more)


class Method(NamedTuple):
    """A way to rank documents.

    Attributes:
        name: on the command line and in tables.
        kind: "ranker" (no encoder of ours), "encoder" (nothing is routed), "static" (a rule chooses
            the depth), "learner" (training chooses it), "oracle" (reads the answers).
        run: see the head of this module.
        about: what it is, in a line.
        specify: its specification, from what the methods of a table share and the task.
        seeded: whether it differs from seed to seed.
        slow: `--quick` leaves it out: it trains an encoder, or is much like another one.
        needs: the split without whose queries it cannot run.
    """

    name: str
    kind: str
    run: Callable[[RetrievalTask, Any, str, Log | None], Result]
    about: str
    specify: Callable[[CommonSpec, RetrievalTask], Any] = _plain
    seeded: bool = False
    slow: bool = False
    needs: str | None = None

    def missing(self, task: RetrievalTask) -> str | None:
        """Why it cannot run on a task, if so."""
        if self.needs is None or task.collection.splits[self.needs].ids:
            return None
        return f"there is no {self.needs} query"


def _for_ndcg(task: RetrievalTask, spec: Any, log: Log) -> Trained:
    """Trained on nDCG@10 alone; what the depths are worth is told by the table's own reward."""
    paid = replace(spec.task, alignment="ndcg", reward_weights=NDCG.weights)
    return train_on_all_rewards(task, replace(spec, task=paid), log)


def _unrouted(name: str, encoder: str, about: str, slow: bool = False) -> Method:
    run = partial(unrouted, encoder)
    return Method(name, "encoder", run, about, _trained_alike, slow=slow)


def _rule(name: str, rule: str, about: str) -> Method:
    return Method(name, "static", partial(by_rule, rule), about, needs="train")


def _learner(
    name: str, train: Learner, about: str, specify: Callable[..., Any], slow: bool = False
) -> Method:
    run = partial(by_training, train)
    return Method(name, "learner", run, about, specify, seeded=True, slow=slow, needs="train")


_BY_RULE = partial(_offline, SupervisedSpec, labels="rule")
_BY_ORACLE = partial(_offline, SupervisedSpec, labels="oracle")
_ALL_REWARDS = partial(_offline, FullInformationSpec)
_SEES_RANKINGS: Final[dict[str, Any]] = {"observation": ("profile", "retrieval")}
_SEES = "that also sees what the ranking through each depth looks like, without judgments"

_ALL: Final = (
    Method("bm25", "ranker", bm25, "BM25 (Lucene's, k1 1.2, b 0.75) over the whole collection"),
    _unrouted("mean-pooling", "mean_pooling", "mean of the token embeddings, no attention", True),
    _unrouted("non-maw-zero-shot", "zero_shot", "NON-MAW encoder, untrained"),
    Method(
        "standard-attention",
        "encoder",
        standard_attention,
        "the MAW encoder's own standard attention, which encodes its documents",
    ),
    _unrouted(
        "non-maw-trained",
        "non_maw",
        "NON-MAW encoder, same pairs and optimiser steps as the MAW encoder's two stages",
        slow=True,
    ),
    _unrouted(
        "maw-single",
        "single_depth",
        "MAW encoder with one untied depth, same pairs and steps: nothing is chosen",
        slow=True,
    ),
    Method(
        "ensemble",
        "encoder",
        ensemble,
        "the mean of all depths' embeddings: nothing is chosen, at the cost of every depth",
        slow=True,
    ),
    Method(
        "dense-bm25",
        "ranker",
        partial(with_bm25, "sum"),
        "standard attention and BM25: sum of standardised scores, weighed on validation queries",
        needs="validation",
    ),
    Method(
        "dense-bm25-rrf",
        "ranker",
        partial(with_bm25, "ranks"),
        "standard attention and BM25: reciprocal rank fusion",
        slow=True,
    ),
    Method("random", "static", randomly, "a depth drawn uniformly for each query", seeded=True),
    _rule("best-fixed-reward", "best_fixed", "the depth of largest mean training reward"),
    _rule("best-fixed-ndcg", "best_fixed_ndcg", "the depth of largest mean training nDCG@10"),
    _rule(
        "observed-reward",
        "observed_reward",
        "the depth of largest reward, as far as entropy, focus and the depths' mean alignment on"
        " training queries tell",
    ),
    _rule("rule-constant", "rule", "the rule's most common label of training queries"),
    _learner("supervised-rule", train_classifier, "classifier on the rule's labels", _BY_RULE),
    _learner(
        "supervised-oracle", train_classifier, "classifier on the best depths", _BY_ORACLE, True
    ),
    _learner(
        "full-information",
        train_on_all_rewards,
        "the same network on the rewards of all depths: no exploration",
        _ALL_REWARDS,
    ),
    _learner("full-ndcg", _for_ndcg, "the same, paid for nDCG@10 alone", _ALL_REWARDS),
    _learner(
        "full-ndcg-retrieval",
        _for_ndcg,
        f"one {_SEES}",
        partial(_ALL_REWARDS, **_SEES_RANKINGS),
        slow=True,
    ),
    _learner("ppo", train_ppo, "PPO of Stable-Baselines3", partial(_online, PPOSpec)),
    _learner("grpo", train_grpo, "GRPO", partial(_online, GRPOSpec)),
    _learner(
        "grpo-retrieval",
        train_grpo,
        f"GRPO {_SEES}",
        partial(_online, GRPOSpec, **_SEES_RANKINGS),
        slow=True,
    ),
    Method(
        "oracle",
        "oracle",
        partial(by_hindsight, "reward"),
        "the depth of largest reward on the test query itself",
    ),
    Method(
        "oracle-ndcg",
        "oracle",
        partial(by_hindsight, "nDCG@10"),
        "the depth of largest nDCG@10 on the test query itself",
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
            close = difflib.get_close_matches(given, METHODS, n=1)
            question = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"unknown method {given!r}: {question}choose from {', '.join(METHODS)}, or give"
                " module:name of a learner of your own"
            )
        given = imported(given, "learner")
    if isinstance(given, Method):
        return given
    if not (inspect.isfunction(given) or inspect.isclass(given)) or given.__name__ in METHODS:
        raise InputError(
            f"a learner is a function or a class with a name of its own, got {given!r}"
        )
    source = ""
    with suppress(OSError):  # typed into an interpreter that keeps no text
        source = hashlib.sha256(inspect.getsource(given).encode()).hexdigest()

    def specify(common: CommonSpec, task: RetrievalTask) -> OwnSpec:
        return OwnSpec(common.task, common.online, source)

    about = (inspect.getdoc(given) or given.__name__).partition("\n")[0].rstrip(".")
    return _learner(given.__name__, given, about, specify)
