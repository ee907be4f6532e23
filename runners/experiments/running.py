"""Computing one cell: train what is to be trained, choose depths, rank, measure."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from agents.baseline_encoders import (
    baseline_encoder,
    evaluate_bm25,
    evaluate_encoder,
    training_sources,
)
from agents.baselines import FullInformationSettings, random_depths, static_router
from agents.supervised import SupervisedSettings
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.validation import Validation
from maw_gym.envs.bandit import Bandit
from maw_gym.retrieval.evaluation import (
    DEPTH_OF_RANKING,
    Evaluation,
    write_trec_run,
)
from maw_gym.retrieval.search import Ranking
from maw_gym.routers.depth_router import DepthRouter, save_router
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.rewards import NDCG
from maw_gym.tables.task import RetrievalTask
from runners.experiments.cells import Cell
from runners.experiments.latency import Encode, added_latency
from runners.experiments.methods import ENCODERS, METHODS, STATIC
from runners.experiments.online import Trained, train_online
from runners.experiments.settings import CommonSettings, OnlineSettings
from runners.train_grpo import GRPOSettings
from runners.train_ppo import PPORunSettings
from runners.train_supervised import train_fitted


class Place(NamedTuple):
    """Where the files of a cell go.

    Attributes:
        training: folder of the training's logs and its router.
        trec: the TREC run file.
    """

    training: Path
    trec: Path


def compute(task: RetrievalTask, settings: OnlineSettings, method: str, place: Place) -> Cell:
    """One method on the test queries of one fold.

    Args:
        task: of the dataset, the encoder and the fold.
        settings: of this seed and fold; the observation is one that the encoder can give.
        method: one of `METHODS`.
        place: gets the ranking, and what a training leaves.
    """
    cell = Cell(method, settings.seed, settings.fold, {})
    kind = METHODS[method].kind
    if method == "bm25":
        found = evaluate_bm25(task, "test")
    elif method == "standard-attention":
        cell.parameters = _size(task.embedder.encoder, but="depth_")
        cell.latency_ms = 0.0
        found = task.evaluate("test")
    elif kind == "encoder":
        found = _encoder(task, method, cell)
    else:
        router = None
        if kind == "learner":
            router = _learner(task, settings, method, place, cell)
        elif method in STATIC:
            router = static_router(STATIC[method], task, settings.reward)
        depths = _depths(task, settings, method, router)
        cell.depths = depths.tolist()
        bandit = Bandit(task.table("test"), reward=settings.reward)
        cell.terms = _terms(bandit, depths)
        cell.parameters = _size(task.embedder.encoder)
        if kind == "learner" and router is not None:
            cell.parameters += _size(router)
        if kind != "oracle":
            cell.latency_ms = _latency(task, _encode(task, router, depths))
        if method == "random":
            cell.terms = _expected_terms(bandit)
        found = task.evaluate("test", torch.from_numpy(depths))
    evaluation, ranking = found
    cell.measures = {name: values.tolist() for name, values in evaluation.per_query.items()}
    _write_run(task, method, ranking, place.trec)
    return cell


def _encoder(task: RetrievalTask, method: str, cell: Cell) -> tuple[Evaluation, Ranking]:
    sources = training_sources(task)
    told = (task.encoder_provenance.get("training") or {}).get("settings")
    training = TrainingSettings(**told) if told else None
    embedder, provenance = baseline_encoder(
        ENCODERS[method], task.collection, sources, task.device, training
    )
    cell.facts = {"encoder": provenance}
    if "pairs" in provenance:
        # Of an encoder from the cache, the time is the one it took when it was trained.
        cell.training_seconds = provenance.get("seconds")
        if sources[0].name != task.collection.name:
            embedder = _chosen(task, embedder, cell)
    cell.parameters = 0 if method == "mean-pooling" else _size(embedder.encoder)
    depth = torch.zeros(1, dtype=torch.long) if embedder.encoder.settings.depths else None
    cell.latency_ms = _latency(task, lambda texts: embedder.encode_queries(texts, depth).cpu())
    return evaluate_encoder(embedder, task.collection, "test", task.device)


def _chosen(task: RetrievalTask, trained: Embedder, cell: Cell) -> Embedder:
    """Of the trained and the untrained encoder the better one on validation queries.

    The MAW encoder has this choice too, where it was trained on another collection.
    """
    untrained = untrained_embedder(task.collection.doc_texts, trained.encoder.settings)
    untrained = untrained.to(task.device)
    validation = Validation(task.collection, untrained, TrainingSettings().document_tokens)
    scores = {"untrained": validation.score(untrained), "trained": validation.score(trained)}
    better = scores["trained"] > scores["untrained"]
    cell.facts |= {
        "validation nDCG@10": scores,
        "chosen": "trained" if better else "untrained",
    }
    return trained if better else untrained


def _learner(
    task: RetrievalTask, settings: OnlineSettings, method: str, place: Place, cell: Cell
) -> DepthRouter:
    place.training.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    trained = _trained(task, settings, method, place.training, cell)
    cell.training_seconds = time.perf_counter() - start
    cell.history, cell.chosen_at = trained.history, trained.chosen_at
    save_router(place.training / "router.safetensors", trained.router)
    return trained.router


def _trained(
    task: RetrievalTask, settings: OnlineSettings, method: str, folder: Path, cell: Cell
) -> Trained:
    told = vars(settings)
    if method == "grpo":
        grpo = GRPOSettings(**told)
        return train_online(task, grpo, method, grpo.model, folder)
    if method == "ppo":
        ppo = PPORunSettings(**told)
        return train_online(task, ppo, method, ppo.model, folder)
    # As many training queries seen as the others have timesteps.
    epochs = max(1, round(settings.timesteps / len(task.table("train"))))
    labels = {"supervised-rule": "rule", "supervised-oracle": "oracle"}.get(method)
    fit = SupervisedSettings() if labels else FullInformationSettings()
    trained, facts = train_fitted(task, settings, replace(fit, epochs=epochs), labels, folder)
    cell.facts = facts
    return trained


def _depths(
    task: RetrievalTask, settings: CommonSettings, method: str, router: DepthRouter | None
) -> NDArray[np.int64]:
    table = task.table("test")
    if router is not None:
        return router.to(task.device).predict(table.observation(router.observation))[0]
    if method == "random":
        generator = np.random.default_rng(settings.seed)
        return random_depths(len(table), table.num_depths, generator)
    return Bandit(table, reward=settings.reward if method == "oracle" else NDCG).oracle


def _terms(bandit: Bandit, depths: NDArray[np.int64]) -> dict[str, list[float]]:
    rows = np.arange(len(bandit))
    return {name: values[rows, depths].tolist() for name, values in bandit.terms.items()}


def _expected_terms(bandit: Bandit) -> dict[str, list[float]]:
    """Of a uniform depth: exact, where the ranking is that of one draw."""
    return {
        name: values.astype(np.float64).mean(axis=1).tolist()
        for name, values in bandit.terms.items()
    }


def _encode(task: RetrievalTask, router: DepthRouter | None, depths: NDArray[np.int64]) -> Encode:
    """How a method encodes a query; a depth that is fixed or drawn has nothing to look at."""
    if router is None or "depth" in router.settings:
        depth = torch.from_numpy(depths[:1])
        return lambda texts: task.embedder.encode_queries(texts, depth).cpu()
    routed = RoutedEncoder(task.embedder, router, task.collection.name, task.device)
    return routed.encode_query


def _latency(task: RetrievalTask, encode: Encode) -> float:
    texts: Sequence[str] = task.collection.splits["test"].texts
    return added_latency(encode, lambda some: task.embedder.encode_queries(some).cpu(), texts)


def _size(module: torch.nn.Module, but: str = "-") -> int:
    """Number of parameters, without those whose names begin with `but`."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not name.startswith(but)
    )


def _write_run(task: RetrievalTask, method: str, ranking: Ranking, path: Path) -> None:
    assert ranking.documents.shape[1] <= DEPTH_OF_RANKING
    write_trec_run(
        path,
        task.collection.splits["test"].ids,
        task.collection.doc_ids,
        ranking.documents.cpu().numpy(),
        ranking.scores.cpu().numpy(),
        method,
    )
