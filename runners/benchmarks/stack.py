"""What lies around the attention: depth tables, environment steps, training steps."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.grpo import GRPO
from agents.ppo import make_ppo
from agents.sb3.vec_env import to_sb3
from agents.settings import PPOSettings
from maw_gym.corpora import Collection
from maw_gym.corpora.collection import QuerySet
from maw_gym.encoders.embedder import Embedder
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.tables.depth_table import TERMS, DepthTable
from maw_gym.tables.task import RetrievalTask
from runners.benchmarks.measuring import Row, interleaved, row

SYNTHETIC_TOKENS = 24


@contextmanager
def empty_cache() -> Iterator[Path]:
    """A cache folder of its own, so that what is built is built."""
    before = os.environ.get("MAW_GYM_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAW_GYM_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["MAW_GYM_HOME"]
            else:
                os.environ["MAW_GYM_HOME"] = before


def table_rows(
    collection: Collection, embedder: Embedder, device: torch.device
) -> tuple[list[Row], DepthTable]:
    """Depth tables of all queries, built and read again; and the largest of them, in memory."""
    splits = [name for name, queries in collection.splits.items() if queries.ids]
    count = sum(len(collection.splits[name].ids) for name in splits)
    rows = []
    with empty_cache():
        task = RetrievalTask(collection, embedder, device)
        start = time.perf_counter()
        task.index  # noqa: B018  (encodes the documents)
        rows.append(_once(collection, "documents", start, len(collection.doc_ids), "documents/s"))
        start = time.perf_counter()
        for name in splits:
            task.table(name)
        rows.append(_once(collection, "tables, cold", start, count, "queries/s"))
        again = RetrievalTask(collection, embedder, device)
        start = time.perf_counter()
        tables = [again.table(name) for name in splits]
        rows.append(_once(collection, "tables, cached", start, count, "queries/s"))
        largest = max(tables, key=len)
        # The memory maps go with the folder.
        columns: dict[str, Any] = {name: np.array(getattr(largest, name)) for name in TERMS}
        blocks = {name: np.array(values) for name, values in largest.blocks.items()}
    return rows, DepthTable(largest.query_ids, **columns, blocks=blocks)


def _once(collection: Collection, name: str, start: float, count: int, unit: str) -> Row:
    seconds = time.perf_counter() - start
    return row("table", f"{collection.name}, {count}", name, [seconds], None, count, unit)


def synthetic_queries(
    collection: Collection, embedder: Embedder, count: int, documents: int | None = None
) -> Collection:
    """The collection with `count` train queries of 24 tokens, of random words, and no others."""
    collection = collection._replace(
        doc_ids=collection.doc_ids[:documents], doc_texts=collection.doc_texts[:documents]
    )
    generator = np.random.default_rng(0)
    candidates = embedder.text.tokens(range(embedder.text.vocabulary))
    words = [word[1:] for word in candidates if word.startswith("▁") and word[1:].isalpha()]
    single = [
        word
        for word, ids in zip(words, embedder.text.tokenize(words), strict=True)
        if len(ids) == 1
    ]
    chosen = np.array(single)[generator.integers(len(single), size=(count, SYNTHETIC_TOKENS))]
    relevant = generator.integers(len(collection.doc_ids), size=count)
    queries = QuerySet(
        tuple(f"synthetic/{number}" for number in range(count)),
        tuple(" ".join(words) for words in chosen),
        tuple({collection.doc_ids[document]: 1} for document in relevant),
    )
    nothing = QuerySet((), (), ())
    splits = {name: queries if name == "train" else nothing for name in collection.splits}
    name = f"{collection.name}, synthetic queries"
    content = f"{count} synthetic queries, {len(collection.doc_ids)} documents"
    provenance = {**collection.provenance, "content": content}
    return collection._replace(name=name, splits=splits, provenance=provenance)


def environment_rows(table: DepthTable, sizes: tuple[int, ...], rounds: int) -> list[Row]:
    """Environment steps of the vector environment, of a bare table and of CartPole-v1."""
    rows = []
    generator = np.random.default_rng(0)
    observations = np.ascontiguousarray(table.block("attention"))
    for size in sizes:
        ours = GRPOVectorEnvironment(size, table=table)
        cart = gym.make_vec("CartPole-v1", size, vectorization_mode="vector_entry_point")
        # Other queries every time, as an environment shows them: the same rows would stay in cache.
        drawn = cycle(generator.integers(len(table), size=(64, size)))
        functions: dict[str, Callable[[], object]] = {
            "table[index]": lambda drawn=drawn: observations[next(drawn)],  # type: ignore[misc]
            "MAWDepth-v0": _stepper(ours, generator),
            "CartPole-v1": _stepper(cart, generator),
        }
        times = interleaved(functions, torch.device("cpu"), rounds, budget=2.0)
        for name, found in times.items():
            width = 16 if name == "CartPole-v1" else observations.itemsize * observations.shape[1]
            made = row(
                "environment",
                f"{size} sub-environments",
                name,
                found,
                times["table[index]"],
                size,
                "steps/s",
                more={"bytes per observation": width},
            )
            rows.append(made)
        cart.close()
    return rows


def _stepper(env: VectorEnv, generator: np.random.Generator) -> Callable[[], object]:
    env.reset(seed=0)
    choices = int(env.single_action_space.n)  # type: ignore[attr-defined]
    actions = generator.integers(choices, size=env.num_envs)
    return lambda: env.step(actions)


def training_rows(
    table: DepthTable, num_envs: int, timesteps: int, rounds: int, device: torch.device
) -> list[Row]:
    """Training steps of GRPO and of SB3's PPO: same network, rollouts, one epoch of one batch."""
    steps = 8

    def environment() -> VectorEnv:
        return GRPOVectorEnvironment(num_envs, group_size=8, table=table)

    told = PPOSettings(n_steps=steps, batch_size=steps * num_envs, n_epochs=1)
    learners: dict[str, OnPolicyAlgorithm] = {
        "PPO": make_ppo(to_sb3(environment()), told, seed=0, device=device),
        "GRPO": GRPO(
            "MlpPolicy",
            to_sb3(environment()),
            n_steps=steps,
            n_epochs=1,
            advantage="outcome",
            group_size=8,
            seed=0,
            device=device,
        ),
    }
    functions: dict[str, Callable[[], object]] = {
        name: lambda learner=learner: learner.learn(timesteps)  # type: ignore[misc]
        for name, learner in learners.items()
    }
    times = interleaved(functions, device, rounds, budget=60.0)
    case = f"{num_envs} sub-environments, {timesteps} steps"
    return [
        row("training", case, name, found, times["PPO"], timesteps, "steps/s")
        for name, found in times.items()
    ]
