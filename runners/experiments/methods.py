"""The methods that experiments can run, by name: the one list that all runners and tables read.

A method is a function from a task, its specification, a split and a log to its `Result`; a new row
of every table is such a function and one `Method`: in `METHODS`, or given to `compare`.
"""

import difflib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from agents.baseline_encoders import (
    baseline_encoder,
    ensemble_queries,
    evaluate_bm25,
    evaluate_encoder,
    training_sources,
)
from agents.baselines import random_depths, static_router
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.training.selection import UNTRAINED, choose, judges
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation
from maw_gym.envs.bandit import NDCG, Bandit
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import read_json, write_json
from maw_gym.retrieval.evaluation import Evaluation, evaluate_embeddings
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import Ranking
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.settings import checked
from maw_gym.tables.task import RetrievalTask
from runners.experiments.command_line import changed
from runners.experiments.settings import (
    CommonSpec,
    FullInformationSpec,
    GRPOSpec,
    PPOSpec,
    Spec,
    SupervisedSpec,
    TaskSettings,
)
from runners.experiments.training import Log, Trained, train_on_all_rewards
from runners.train_grpo import train_grpo
from runners.train_ppo import train_ppo
from runners.train_supervised import train_classifier

RANKINGS: Final = ("profile", "retrieval")  # observed by those that see rankings
LATENCY_QUERIES: Final = 40
WARM_UP: Final = 3

Encode = Callable[[list[str]], Any]  # a query alone in a list to what is ranked with
Train = Callable[[RetrievalTask, Any, Log], Trained]
Floats = NDArray[np.float64]


@dataclass
class Result:
    """What a method did with the N queries of a split, and what that was worth."""

    measures: dict[str, Floats]
    depths: NDArray[np.int64] | None = None
    terms: dict[str, Floats] | None = None
    parameters: int | None = None
    training_seconds: float | None = None
    latency_ms: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    history: list[tuple[int, float]] | None = None
    chosen_at: int | None = None
    ranking: Ranking | None = None
    encode: Encode | None = None
    router: DepthRouter | None = None
    trained: Trained | None = None

    @classmethod
    def of(cls, found: tuple[Evaluation, Ranking], **more: Any) -> "Result":
        """The result of an evaluation and its ranking."""
        evaluation, ranking = found
        return cls(evaluation.per_query, ranking=ranking, **more)

    def save(self, path: Path) -> None:
        """Write what is kept as JSON, beside its checksum."""
        write_json(path, {name: _plain_value(getattr(self, name)) for name in KEPT}, KIND)

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote."""
        content = read_json(path, KIND)
        if content.keys() != set(KEPT):
            raise DamagedFileError(f"{path} is the result of another version")
        for name in ("measures", "terms"):
            if content[name] is not None:
                content[name] = {key: np.array(one) for key, one in content[name].items()}
        if content["depths"] is not None:
            content["depths"] = np.array(content["depths"])
        return cls(**content)


KIND: Final = "result"
KEPT: Final = [one.name for one in fields(Result)][:9]


def _plain_value(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(one) for one in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


# --- methods that choose no depth: BM25 and encoders -----------------------------------------


@checked
class EncoderSpec:
    """All that an encoder without routing depends on."""

    task: TaskSettings = TaskSettings()
    training: TrainingSettings = TrainingSettings()
    """as long and as wide as the MAW encoder's"""


def bm25(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """BM25 over the whole collection."""
    return Result.of(evaluate_bm25(task, split))


def standard_attention(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """The MAW encoder's standard attention."""
    encode = _standard(task)
    return Result.of(task.evaluate(split), parameters=size(task.embedder, "depth_"), encode=encode)


def ensemble(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """The mean of all depths' embeddings."""

    def encode(texts: Sequence[str]) -> Tensor:
        return ensemble_queries(task.embedder, texts)

    queries = task.collection.splits[split]
    found = evaluate_embeddings(task.index, queries, encode(queries.texts), task.candidates(split))
    return Result.of(
        found, parameters=size(task.embedder), encode=lambda texts: encode(texts).cpu()
    )


def with_bm25(fusion: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """The MAW encoder's standard attention and BM25 together."""
    facts = {"weight of cosines": task.hybrid_weight} if fusion == "sum" else {}
    return Result.of(task.evaluate_hybrid(split, fusion=fusion), facts=facts)


def unrouted(
    name: str, task: RetrievalTask, spec: EncoderSpec, split: str, log: Log | None
) -> Result:
    """An encoder of `agents.baseline_encoders`."""
    sources = training_sources(task)
    embedder, provenance = baseline_encoder(
        name, task.collection, sources, task.device, spec.training, text=task.pretrained
    )
    facts: dict[str, Any] = {"encoder": provenance}
    if "pairs" in provenance and sources[0].name != task.collection.name:
        embedder, choice = _chosen(task, embedder, spec.training)
        facts |= choice
    depth = torch.zeros(1, dtype=torch.long) if embedder.encoder.settings.depths else None
    return Result.of(
        evaluate_encoder(embedder, task.collection, split, task.device),
        parameters=0 if name == "mean_pooling" else size(embedder),
        # Of an encoder from the cache, the time is the one it took when it was trained.
        training_seconds=provenance.get("seconds"),
        encode=lambda texts: embedder.encode_queries(texts, depth).cpu(),
        facts=facts,
    )


def _chosen(
    task: RetrievalTask, trained: Embedder, training: TrainingSettings
) -> tuple[Embedder, dict[str, Any]]:
    """Of the trained and the untrained encoder the better one on queries outside test."""
    text = task.pretrained
    untrained = untrained_embedder(task.collection.doc_texts, trained.encoder.settings, text)
    embedders = {UNTRAINED: untrained.to(task.device), "trained": trained}
    cut = training.suited(text, task.device).document_tokens
    queries = judges(task.collection, learned_from=False)
    validation = Validation(task.collection, untrained, cut, queries)
    choice = choose({name: validation.scores(one).numpy() for name, one in embedders.items()})
    return embedders[choice["chosen"]], choice


# --- methods that choose a depth: by rule, by hindsight and by training ----------------------


def randomly(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """A depth drawn for each query; its terms are those that are expected."""
    table = task.table(split)
    depths = random_depths(len(table), table.num_depths, np.random.default_rng(spec.task.seed))
    result = by_depths(task, spec.task, split, depths)
    terms = Bandit(table, reward=spec.task.reward).terms
    result.terms = {name: values.astype(np.float64).mean(axis=1) for name, values in terms.items()}
    return result


def by_rule(name: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """A rule of `agents.baselines`."""
    return by_router(task, spec.task, split, static_router(name, task, spec.task.reward))


def by_hindsight(by: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """Each query's best depth, by its reward or by its nDCG@10."""
    bandit = Bandit(task.table(split), reward=NDCG if by == "nDCG@10" else spec.task.reward)
    result = by_depths(task, spec.task, split, bandit.oracle)
    result.encode = None
    return result


def by_training(
    train: Train, task: RetrievalTask, spec: Any, split: str, log: Log | None
) -> Result:
    """The depths of a learner's router."""
    assert log is not None
    start = time.perf_counter()
    trained = train(task, spec, log)
    seconds = time.perf_counter() - start
    result = by_router(task, spec.task, split, trained.router)
    assert result.parameters is not None
    result.parameters += size(trained.router)
    result.training_seconds, result.facts, result.trained = seconds, trained.facts, trained
    result.history, result.chosen_at = trained.history, trained.chosen_at
    return result


def by_router(task: RetrievalTask, spec: TaskSettings, split: str, router: DepthRouter) -> Result:
    """The depths that a router prefers."""
    table = task.table(split)
    depths, _ = router.to(task.device).predict(table.observation(router.observation))
    result = by_depths(task, spec, split, depths)
    result.router = router
    if "depth" not in router.settings:  # of a fixed one there is nothing to look at
        routed = RoutedEncoder(task.embedder, router, task.collection.name, task.device)
        # Of use where the router looks at what a search finds; its searches are part of its cost.
        routed.documents = SearchIndex(task.index, task.embedder.fingerprint())
        result.encode = routed.encode_query
    return result


def by_depths(
    task: RetrievalTask, spec: TaskSettings, split: str, depths: NDArray[np.int64]
) -> Result:
    """Depths that nobody had to look at the query for, ranked with the really encoded queries."""
    terms = Bandit(task.table(split), reward=spec.reward).terms
    chosen, first = torch.as_tensor(depths), torch.from_numpy(depths[:1])
    rows = np.arange(len(depths))
    return Result.of(
        task.evaluate(split, chosen),
        depths=depths,
        terms={name: values[rows, depths].astype(np.float64) for name, values in terms.items()},
        parameters=size(task.embedder),
        encode=lambda texts: task.embedder.encode_queries(texts, first).cpu(),
    )


def _for_ndcg(train: Train, task: RetrievalTask, spec: Any, log: Log) -> Trained:
    """Train on nDCG@10 alone; what the depths are worth is told by the table's own reward."""
    paid = replace(spec.task, alignment="ndcg", reward_weights=(0.0, 0.0, 1.0))
    return train(task, replace(spec, task=paid), log)


def size(module: Embedder | Module, but: str = "-") -> int:
    """Number of parameters, without those whose names begin with `but`."""
    of = module.encoder if isinstance(module, Embedder) else module
    return sum(one.numel() for name, one in of.named_parameters() if not name.startswith(but))


def added_latency(encode: Encode, task: RetrievalTask, texts: Sequence[str]) -> float:
    """Median milliseconds that `encode` takes longer than standard attention for one query."""
    standard = _standard(task)

    def seconds(function: Encode, text: str) -> float:
        start = time.perf_counter()
        function([text])
        return time.perf_counter() - start

    chosen = list(texts[:LATENCY_QUERIES])
    turns = [seconds(encode, text) - seconds(standard, text) for text in chosen[:WARM_UP] + chosen]
    return 1000 * statistics.median(turns[min(WARM_UP, len(chosen)) :])


def _standard(task: RetrievalTask) -> Encode:
    return lambda texts: task.embedder.encode_queries(texts).cpu()


# --- the list --------------------------------------------------------------------------------


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


def _no_training_queries(task: RetrievalTask) -> str | None:
    return None if len(task.table("train")) else "there is no training query"


def _no_validation_queries(task: RetrievalTask) -> str | None:
    return None if task.collection.splits["validation"].ids else "there is no validation query"


class Method(NamedTuple):
    """A way to rank documents.

    Attributes:
        name: on the command line and in tables.
        run: see the head of this module.
        kind: "ranker" (no encoder of ours), "encoder" (nothing is routed), "static" (a rule chooses
            the depth), "learner" (training chooses it), "oracle" (reads the answers).
        title: its name in the table of a single run.
        about: what it is, in a line.
        specify: its specification, from the task and the settings that the methods of a table
            share.
        seeded: whether it differs from seed to seed.
        slow: it trains an encoder, which `--quick` leaves out.
        missing: what it wants and a task has not; None where it can run.
    """

    name: str
    run: Callable[[RetrievalTask, Any, str, Log | None], Result]
    kind: str
    title: str
    about: str
    specify: Callable[[CommonSpec, RetrievalTask], Any] = _plain
    seeded: bool = False
    slow: bool = False
    missing: Callable[[RetrievalTask], str | None] = lambda task: None


_ALL: Final = (
    Method(
        "bm25", bm25, "ranker", "BM25", "BM25 (Lucene's, k1 1.2, b 0.75) over the whole collection"
    ),
    Method(
        "mean-pooling",
        partial(unrouted, "mean_pooling"),
        "encoder",
        "mean pooling",
        "mean of the token embeddings, no attention",
        _trained_alike,
    ),
    Method(
        "non-maw-zero-shot",
        partial(unrouted, "zero_shot"),
        "encoder",
        "zero-shot NON-MAW",
        "NON-MAW encoder, untrained",
        _trained_alike,
    ),
    Method(
        "standard-attention",
        standard_attention,
        "encoder",
        "standard attention",
        "the MAW encoder's own standard attention, which encodes its documents",
    ),
    Method(
        "non-maw-trained",
        partial(unrouted, "non_maw"),
        "encoder",
        "trained NON-MAW",
        "NON-MAW encoder, same pairs and optimiser steps as the MAW encoder's two stages",
        _trained_alike,
        slow=True,
    ),
    Method(
        "maw-single",
        partial(unrouted, "single_depth"),
        "encoder",
        "single depth",
        "MAW encoder with one untied depth, same pairs and steps: nothing is chosen",
        _trained_alike,
        slow=True,
    ),
    Method(
        "ensemble",
        ensemble,
        "encoder",
        "all depths",
        "the mean of all depths' embeddings: nothing is chosen, at the cost of every depth",
    ),
    Method(
        "dense-bm25",
        partial(with_bm25, "sum"),
        "ranker",
        "dense + BM25",
        "standard attention and BM25: sum of standardised scores, weighed on validation queries",
        missing=_no_validation_queries,
    ),
    Method(
        "dense-bm25-rrf",
        partial(with_bm25, "ranks"),
        "ranker",
        "dense + BM25, RRF",
        "standard attention and BM25: reciprocal rank fusion",
    ),
    Method(
        "random",
        randomly,
        "static",
        "random depth",
        "a depth drawn uniformly for each query",
        seeded=True,
    ),
    Method(
        "best-fixed-reward",
        partial(by_rule, "best_fixed"),
        "static",
        "best fixed depth (reward)",
        "the depth of largest mean reward on training queries",
        missing=_no_training_queries,
    ),
    Method(
        "best-fixed-ndcg",
        partial(by_rule, "best_fixed_ndcg"),
        "static",
        "best fixed depth (nDCG@10)",
        "the depth of largest mean nDCG@10 on training queries",
        missing=_no_training_queries,
    ),
    Method(
        "observed-reward",
        partial(by_rule, "observed_reward"),
        "static",
        "observed-reward rule",
        "the depth of largest reward, as far as entropy, focus and the depths' mean alignment on"
        " training queries tell",
        missing=_no_training_queries,
    ),
    Method(
        "rule-constant",
        partial(by_rule, "rule"),
        "static",
        "the rule's constant",
        "the rule's most common label of training queries",
        missing=_no_training_queries,
    ),
    Method(
        "supervised-rule",
        partial(by_training, train_classifier),
        "learner",
        "supervised-rule",
        "classifier on the rule's labels",
        partial(_offline, SupervisedSpec, labels="rule"),
        seeded=True,
    ),
    Method(
        "supervised-oracle",
        partial(by_training, train_classifier),
        "learner",
        "supervised-oracle",
        "classifier on each query's best depth",
        partial(_offline, SupervisedSpec, labels="oracle"),
        seeded=True,
    ),
    Method(
        "full-information",
        partial(by_training, train_on_all_rewards),
        "learner",
        "full information",
        "the same network on the rewards of all depths: no exploration",
        partial(_offline, FullInformationSpec),
        seeded=True,
    ),
    Method(
        "full-ndcg",
        partial(by_training, partial(_for_ndcg, train_on_all_rewards)),
        "learner",
        "full information, nDCG@10",
        "the same, paid for nDCG@10 alone",
        partial(_offline, FullInformationSpec),
        seeded=True,
    ),
    Method(
        "full-ndcg-retrieval",
        partial(by_training, partial(_for_ndcg, train_on_all_rewards)),
        "learner",
        "full information, nDCG@10, sees rankings",
        "the same, and it sees what the ranking through each depth looks like",
        partial(_offline, FullInformationSpec, observation=RANKINGS),
        seeded=True,
    ),
    Method(
        "ppo",
        partial(by_training, train_ppo),
        "learner",
        "PPO",
        "PPO of Stable-Baselines3",
        partial(_online, PPOSpec),
        seeded=True,
    ),
    Method(
        "grpo",
        partial(by_training, train_grpo),
        "learner",
        "GRPO",
        "GRPO",
        partial(_online, GRPOSpec),
        seeded=True,
    ),
    Method(
        "grpo-retrieval",
        partial(by_training, train_grpo),
        "learner",
        "GRPO, sees rankings",
        "GRPO that also sees what the ranking through each depth looks like, without judgments",
        partial(_online, GRPOSpec, observation=RANKINGS),
        seeded=True,
    ),
    Method(
        "oracle",
        partial(by_hindsight, "reward"),
        "oracle",
        "oracle (reward), upper bound",
        "the depth of largest reward on the test query itself",
    ),
    Method(
        "oracle-ndcg",
        partial(by_hindsight, "nDCG@10"),
        "oracle",
        "oracle (nDCG@10), upper bound",
        "the depth of largest nDCG@10 on the test query itself",
    ),
)
METHODS: Final = {method.name: method for method in _ALL}


def check_methods(names: Sequence[str], known: Mapping[str, Method] = METHODS) -> None:
    """Refuse names that are no method, or that are given twice."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            question = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown method {name!r}: {question}choose from {', '.join(known)}")
    if len(set(names)) != len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise InputError(f"method {twice!r} is given twice")
