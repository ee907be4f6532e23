"""What lies around the attention: depth tables, environment steps, training steps."""

import os
import tempfile
import time
from itertools import cycle
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.corpora import Collection
from maw_gym.corpora.collection import QuerySet
from maw_gym.encoders.embedder import Embedder
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.runners.benchmarks.measuring import Functions, Row, interleaved, row
from maw_gym.tables.depth_table import TERMS, DepthTable
from maw_gym.tables.task import RetrievalTask

SYNTHETIC_TOKENS = 24
CPU = torch.device("cpu")


def table_rows(
    collection: Collection, embedder: Embedder, device: torch.device
) -> tuple[list[Row], DepthTable]:
    """Depth tables of all queries, built and read again; and the largest of them, in memory."""
    splits = [name for name, queries in collection.splits.items() if queries.ids]
    queries = sum(len(collection.splits[name].ids) for name in splits)
    rows = []

    def timed(name: str, count: int, unit: str, start: float) -> None:
        seconds = [time.perf_counter() - start]
        case = f"{collection.name}, {count}"
        rows.append(row("table", case, name, seconds, None, count, unit))

    with (
        tempfile.TemporaryDirectory() as empty,  # so that what is built is built
        patch.dict(os.environ, MAW_GYM_HOME=empty),
    ):
        task, start = RetrievalTask(collection, embedder, device), time.perf_counter()
        documents = len(task.index.doc_ids)
        timed("documents", documents, "documents/s", start)
        for name in ("tables, cold", "tables, cached"):
            start = time.perf_counter()
            tables = [task.table(split) for split in splits]
            timed(name, queries, "queries/s", start)
            task = RetrievalTask(collection, embedder, device)
        largest = max(tables, key=len)
        # The memory maps go with the folder.
        columns: dict[str, Any] = {name: np.array(getattr(largest, name)) for name in TERMS}
        blocks = {name: np.array(values) for name, values in largest.blocks.items()}
    return rows, DepthTable(largest.query_ids, **columns, blocks=blocks)


def synthetic_queries(
    collection: Collection, embedder: Embedder, count: int, documents: int | None = None
) -> Collection:
    """The collection with `count` train queries of 24 tokens, of random words, and no others."""
    doc_ids, doc_texts = collection.doc_ids[:documents], collection.doc_texts[:documents]
    generator = np.random.default_rng(0)
    candidates = embedder.text.tokens(range(embedder.text.vocabulary))
    words = [word[1:] for word in candidates if word.startswith("▁") and word[1:].isalpha()]
    ids = embedder.text.tokenize(words)
    single = np.array([word for word, own in zip(words, ids, strict=True) if len(own) == 1])
    chosen = single[generator.integers(len(single), size=(count, SYNTHETIC_TOKENS))]
    relevant = generator.integers(len(doc_ids), size=count)
    queries = QuerySet(
        tuple(f"synthetic/{number}" for number in range(count)),
        tuple(" ".join(words) for words in chosen),
        tuple({doc_ids[document]: 1} for document in relevant),
    )
    nothing = QuerySet((), (), ())
    content = f"{count} synthetic queries, {len(doc_ids)} documents"
    return collection._replace(
        name=f"{collection.name}, synthetic queries",
        doc_ids=doc_ids,
        doc_texts=doc_texts,
        splits={name: queries if name == "train" else nothing for name in collection.splits},
        provenance={**collection.provenance, "content": content},
    )


def environment_rows(table: DepthTable, sizes: tuple[int, ...], rounds: int) -> list[Row]:
    """Environment steps of the vector environment, of a bare table and of CartPole-v1."""
    rows = []
    generator = np.random.default_rng(0)
    observations = np.ascontiguousarray(table.block("attention"))
    for size in sizes:
        cart = gym.make_vec("CartPole-v1", size, vectorization_mode="vector_entry_point")
        envs = {"MAWDepth-v0": GRPOVectorEnvironment(size, table=table), "CartPole-v1": cart}
        # Other queries every time, as an environment shows them: the same rows would stay in cache.
        drawn = cycle(generator.integers(len(table), size=(64, size)))
        functions: dict[str, Any] = {
            "table[index]": lambda drawn=drawn: observations[next(drawn)],
            **{name: _stepper(env, generator) for name, env in envs.items()},
        }
        times = interleaved(functions, CPU, rounds, budget=2.0)
        for name, found in times.items():
            width = 16 if name == "CartPole-v1" else observations.itemsize * observations.shape[1]
            case, more = f"{size} sub-environments", {"bytes per observation": width}
            reference = times["table[index]"]
            made = row("environment", case, name, found, reference, size, "steps/s", more=more)
            rows.append(made)
        cart.close()
    return rows


def _stepper(env: VectorEnv, generator: np.random.Generator) -> Any:
    env.reset(seed=0)
    choices = int(env.single_action_space.n)  # type: ignore[attr-defined]
    actions = generator.integers(choices, size=env.num_envs)
    return lambda: env.step(actions)


def training_rows(
    table: DepthTable, num_envs: int, timesteps: int, rounds: int, device: torch.device
) -> list[Row]:
    """Training steps of GRPO and of SB3's PPO: same network, rollouts, one epoch of one batch."""
    steps = 8
    first, second = (
        to_sb3(GRPOVectorEnvironment(num_envs, group_size=8, table=table)) for _ in range(2)
    )
    same: dict[str, Any] = {"n_steps": steps, "n_epochs": 1, "seed": 0, "device": device}
    learners: dict[str, OnPolicyAlgorithm] = {
        "PPO": PPO("MlpPolicy", first, batch_size=steps * num_envs, **same),
        "GRPO": GRPO(
            "MlpPolicy", second, batch_size=None, advantage="outcome", group_size=8, **same
        ),
    }
    functions: Functions = {
        name: lambda learner=learner: learner.learn(timesteps)  # type: ignore[misc]
        for name, learner in learners.items()
    }
    times = interleaved(functions, device, rounds, budget=60.0)
    case = f"{num_envs} sub-environments, {timesteps} steps"
    return [
        row("training", case, name, found, times["PPO"], timesteps, "steps/s")
        for name, found in times.items()
    ]
