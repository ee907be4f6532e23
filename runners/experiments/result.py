"""What a method did with the queries of a split, and the ways to such a result.

Each takes a task, the method's specification, a split and, where something is trained, a log.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import Module

from maw_gym.agents.baseline_encoders import (
    TRAINED,
    baseline_encoder,
    ensemble_queries,
    evaluate_bm25,
    evaluate_encoder,
    training_sources,
)
from maw_gym.agents.baselines import static_router
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.training.selection import UNTRAINED, choose, judges
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation
from maw_gym.envs.bandit import NDCG, Bandit
from maw_gym.errors import DamagedFileError
from maw_gym.files import read_json, write_json
from maw_gym.retrieval.evaluation import MEASURES, Evaluation, evaluate_embeddings
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import Ranking
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.runners.experiments.settings import Spec, TaskSettings
from maw_gym.runners.experiments.training import Log, Trained
from maw_gym.tables.task import RetrievalTask

RESULT: Final = "result"  # kind of a result's file
WEIGHT: Final = "weight of cosines"  # beside BM25, among the facts

Encode = Callable[[list[str]], Any]  # a query alone in a list to what is ranked with
# Gives a `Trained`, or anything that has Stable-Baselines3's `predict`.
Learner = Callable[[RetrievalTask, Any, Any], Any]
Floats = NDArray[np.float64]


@dataclass
class Result:
    """What a method did with the N queries of a split; the fields up to `chosen_at` are saved."""

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
        content = {name: getattr(self, name) for name in KEPT}
        plain = json.loads(json.dumps(content, default=lambda array: array.tolist()))
        write_json(path, plain, RESULT)

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read what `save` wrote."""
        content = read_json(path, RESULT)
        if content.keys() != set(KEPT):
            raise DamagedFileError(f"{path} is the result of another version")
        for name in ("measures", "terms"):
            if content[name] is not None:
                content[name] = {key: np.array(one) for key, one in content[name].items()}
        if content["depths"] is not None:
            content["depths"] = np.array(content["depths"])
        return cls(**content)


# Of each task and split: measures, scores and documents of queries (by row) through depths.
_FOUND: WeakKeyDictionary[RetrievalTask, dict[str, dict[tuple[int, int], list[Any]]]]
_FOUND = WeakKeyDictionary()
KEPT: Final = [one.name for one in fields(Result)][:9]


# --- without a depth to choose: BM25 and encoders --------------------------------------------


def bm25(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """BM25 over the whole collection."""
    return Result.of(evaluate_bm25(task, split))


def standard_attention(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """The MAW encoder's standard attention."""
    parameters = size(task.embedder, but="depth_")
    return Result.of(task.evaluate(split), parameters=parameters, encode=standard_encode(task))


def standard_encode(task: RetrievalTask) -> Encode:
    """What latencies are measured from."""
    return lambda texts: task.embedder.encode_queries(texts).cpu()


def ensemble(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """The mean of all depths' embeddings."""
    encode, queries = partial(ensemble_queries, task.embedder), task.collection.splits[split]
    found = evaluate_embeddings(task.index, queries, encode(queries.texts), task.candidates(split))
    parameters = size(task.embedder)
    return Result.of(found, parameters=parameters, encode=lambda texts: encode(texts).cpu())


def with_bm25(fusion: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """The MAW encoder's standard attention and BM25 together."""
    facts = {WEIGHT: task.hybrid_weight} if fusion == "sum" else {}
    return Result.of(task.evaluate_hybrid(split, fusion=fusion), facts=facts)


def unrouted(name: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """An encoder of `maw_gym.agents.baseline_encoders`."""
    sources = training_sources(task) if name in TRAINED else []
    embedder, provenance = baseline_encoder(
        name, task.collection, sources, task.device, spec.learner, text=task.pretrained
    )
    facts: dict[str, Any] = {"encoder": provenance}
    if sources and sources[0].name != task.collection.name:
        embedder, choice = _better(task, embedder, spec.learner)
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


def _better(
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


# --- with one: by rule, by hindsight and by training ------------------------------------------


def randomly(task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """A depth drawn for each query; its terms are those that are expected."""
    table = task.table(split)
    generator = np.random.default_rng(spec.task.seed)
    depths = generator.integers(table.num_depths, size=len(table))
    result = by_depths(task, spec.task, split, depths)
    terms = Bandit(table, reward=spec.task.reward).terms
    result.terms = {name: values.astype(np.float64).mean(axis=1) for name, values in terms.items()}
    return result


def by_rule(name: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """A rule of `maw_gym.agents.baselines`."""
    return by_router(task, spec.task, split, static_router(name, task, spec.task.reward))


def by_hindsight(by: str, task: RetrievalTask, spec: Spec, split: str, log: Log | None) -> Result:
    """Each query's best depth, by its reward or by its nDCG@10."""
    bandit = Bandit(task.table(split), reward=NDCG if by == "nDCG@10" else spec.task.reward)
    result = by_depths(task, spec.task, split, bandit.oracle)
    result.encode = None
    return result


def by_training(
    train: Learner, task: RetrievalTask, spec: Spec, split: str, log: Log | None
) -> Result:
    """The depths of what a learner trains."""
    start = time.perf_counter()
    made = train(task, spec, log)
    seconds = time.perf_counter() - start
    result = judged(task, spec.task, split, made)
    result.training_seconds = seconds
    return result


def judged(task: RetrievalTask, spec: TaskSettings, split: str, made: Any) -> Result:
    """The depths of a `Trained`, or of whatever else has Stable-Baselines3's `predict`."""
    model = made.router if isinstance(made, Trained) else made
    if isinstance(model, DepthRouter):
        result = by_router(task, spec, split, model)
        result.parameters = size(task.embedder) + size(model)
    else:
        bandit = Bandit(task.table(split), spec.observation)
        depths, _ = model.predict(bandit.observations, deterministic=True)
        result = by_depths(task, spec, split, bandit.checked_actions(depths, len(bandit)))
        result.encode = None
    if isinstance(made, Trained):
        result.trained, result.facts = made, made.facts
        result.history, result.chosen_at = made.history, made.chosen_at
    return result


def by_router(task: RetrievalTask, spec: TaskSettings, split: str, router: DepthRouter) -> Result:
    """The depths that a router prefers."""
    depths, _ = router.to(task.device).predict(task.table(split).observation(router.observation))
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
    chosen, rows = torch.as_tensor(depths), np.arange(len(depths))
    return Result.of(
        evaluated(task, split, depths),
        depths=depths,
        terms={name: values[rows, depths].astype(np.float64) for name, values in terms.items()},
        parameters=size(task.embedder),
        encode=lambda texts: task.embedder.encode_queries(texts, chosen[:1]).cpu(),
    )


def evaluated(
    task: RetrievalTask, split: str, depths: NDArray[np.int64]
) -> tuple[Evaluation, Ranking]:
    """As `task.evaluate`; what a query finds through a depth is looked for once for all methods."""
    known = _FOUND.setdefault(task, {}).setdefault(split, {})
    left = [pair[0] for pair in enumerate(depths.tolist()) if pair not in known]
    if left:
        queries, lists = task.collection.splits[split].select(left), task.candidates(split)
        embeddings = task.embedder.encode_queries(queries.texts, torch.as_tensor(depths[left]))
        candidates = lists and [lists[row] for row in left]
        evaluation, ranking = evaluate_embeddings(task.index, queries, embeddings, candidates)
        measured = zip(*evaluation.per_query.values(), strict=True)
        found = zip(left, measured, *ranking, strict=True)
        known |= {(row, int(depths[row])): one for row, *one in found}
    pairs = [known[pair] for pair in enumerate(depths.tolist())]
    values, scores, documents = zip(*pairs, strict=True)
    measures = map(np.ascontiguousarray, np.array(values).T)
    per_query = dict(zip(map(str, MEASURES), measures, strict=True))
    return Evaluation(per_query), Ranking(torch.stack(scores), torch.stack(documents))


def size(module: Embedder | Module, but: str = "-") -> int:
    """Number of parameters, without those whose names begin with `but`."""
    of = module.encoder if isinstance(module, Embedder) else module
    return sum(one.numel() for name, one in of.named_parameters() if not name.startswith(but))
