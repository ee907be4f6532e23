"""The engine: runs one method on one split, and keeps its result under a key of all its content."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from maw_gym.envs.bandit import Bandit
from maw_gym.files import content_key
from maw_gym.retrieval.evaluation import write_trec_run
from maw_gym.routers.depth_router import save_router
from maw_gym.tables.task import RetrievalTask
from runners.experiments.latency import added_latency
from runners.experiments.methods import METHODS
from runners.experiments.results import Did, Result, kept_result
from runners.experiments.settings import TaskSettings
from runners.experiments.training import ROUTER, Log, forget_training

FORMAT: Final = 3  # raise when what a result holds changes


def kept_run(
    method: str, task: RetrievalTask, spec: TaskSettings, folder: Path, name: str, trec: Path
) -> Result:
    """The result of a method on test queries, computed unless it is there for this very content.

    Args:
        method: one of `METHODS`.
        task: of the dataset, the encoder and the fold.
        spec: of the method.
        folder: of the experiment; results lie in cells/, what a training leaves in training/.
        name: of the result among those of the experiment.
        trec: the TREC run file, which belongs to the result.
    """
    path = folder / "cells" / f"{name}.{result_key(method, task, spec)}.safetensors"
    if not trec.exists():
        path.unlink(missing_ok=True)  # its ranking belongs to it

    def compute() -> Result:
        print(f"{name} ...", file=sys.stderr, flush=True)
        training = folder / "training" / name
        learns = METHODS[method].kind == "learner"
        if learns:
            training.mkdir(parents=True, exist_ok=True)
        did = METHODS[method].run(task, spec, "test", Log(training))
        if learns and did.router is not None:
            save_router(training / ROUTER, did.router)
            forget_training(training)
        return result_of(method, task, spec, did, trec)

    return kept_result(path, compute)


def result_key(method: str, task: RetrievalTask, spec: TaskSettings) -> str:
    """Key of everything that a result depends on: all settings, the data and the encoder."""
    settings = asdict(spec)
    for name in ("dataset", "encoder", "device"):  # what they stand for is told below
        del settings[name]
    return content_key(
        {
            "format": FORMAT,
            "method": method,
            "content": task.collection.provenance["content"],
            "encoder": task.embedder.fingerprint(),
            "settings": settings,
            "device": task.device.type,
        }
    )


def result_of(method: str, task: RetrievalTask, spec: TaskSettings, did: Did, trec: Path) -> Result:
    """What is kept of a method on test queries, with its latency; writes its TREC run file."""
    queries = task.collection.splits["test"]
    evaluation, ranking = ranked(task, did, "test")
    result = Result(
        method,
        spec.seed if METHODS[method].seeded else 0,
        spec.fold,
        spec.encoder_seed,
        {name: values.tolist() for name, values in evaluation.per_query.items()},
        did.parameters,
        did.training_seconds,
        facts=did.facts,
    )
    if did.encode is not None:
        standard: Callable[[list[str]], Any]
        standard = lambda texts: task.embedder.encode_queries(texts).cpu()  # noqa: E731
        result.latency_ms = added_latency(did.encode, standard, queries.texts)
    if did.trained is not None:
        result.history, result.chosen_at = did.trained.history, did.trained.chosen_at
    if did.depths is not None:
        bandit = Bandit(task.table("test"), reward=spec.reward)
        rows = np.arange(len(bandit))
        result.depths = did.depths.tolist()
        result.terms = {
            # Of a uniform depth the expected terms are exact; the ranking is that of one draw.
            name: values.astype(np.float64).mean(axis=1).tolist()
            if method == "random"
            else values[rows, did.depths].tolist()
            for name, values in bandit.terms.items()
        }
    write_trec_run(
        trec,
        queries.ids,
        task.collection.doc_ids,
        ranking.documents.cpu().numpy(),
        ranking.scores.cpu().numpy(),
        method,
    )
    return result


def ranked(task: RetrievalTask, did: Did, split: str) -> Any:
    """Evaluation and ranking of what a method did, through really encoded queries."""
    if did.ranked is not None:
        return did.ranked
    return task.evaluate(split, torch.as_tensor(did.depths))
