"""What lies around the attention: depth tables, environment steps, training steps, search.

Texts to be searched are synthetic: words of the text encoder's vocabulary, drawn with Zipf's law.
Each size is indexed and searched in a process of its own, whose peak of resident memory is the
row's memory.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from torch.nn.functional import normalize

from maw_gym.agents.grpo import GRPO
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.retrieval.documents import DocumentIndex, steps
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import rank
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.runners.benchmarks.measuring import Row, interleaved
from maw_gym.tables.depth_table import DepthTable
from maw_gym.tables.task import RetrievalTask

STEPS: Final = 8  # of each sub-environment in a rollout
DOCUMENT_WORDS: Final = (20, 60)  # of a synthetic document, drawn evenly
QUERY_WORDS: Final = (4, 12)
CHUNK: Final = 10_000  # texts drawn at once
K: Final = 10  # documents wanted per query


def table_rows(
    collection: Collection, embedder: Embedder, device: torch.device
) -> tuple[list[Row], DepthTable]:
    """Depth tables of all queries, built and, where there are now files, read; the largest one."""
    splits = [name for name, queries in collection.splits.items() if queries.ids]
    queries = sum(len(collection.splits[name].ids) for name in splits)
    rows = []

    def timed(name: str, count: int, unit: str, start: float) -> None:
        seconds = [time.perf_counter() - start]
        rows.append(Row("table", f"{collection.name}, {count}", name, seconds, (), count, unit))

    start = time.perf_counter()
    task = RetrievalTask(collection, embedder, device)
    timed("documents", len(task.index.doc_ids), "documents", start)
    for name in ("tables, cold", "tables, cached"):
        start = time.perf_counter()
        tables = [task.table(split) for split in splits]
        timed(name, queries, "queries", start)
        task = RetrievalTask(collection, embedder, device)
    return rows, max(tables, key=len)


def environment_rows(table: DepthTable, sizes: Sequence[int], rounds: int) -> list[Row]:
    """Environment steps of the vector environment, of a bare table and of CartPole-v1."""
    rows = []
    generator = np.random.default_rng(0)
    observations = np.array(table.block("attention"))
    for size in sizes:
        cart = gym.make_vec("CartPole-v1", size, vectorization_mode="vector_entry_point")
        # Other queries every time, as an environment shows them: the same rows would stay in cache.
        drawn = cycle(generator.integers(len(table), size=(64, size)))
        functions: dict[str, Callable[[], object]] = {
            "table[index]": lambda drawn=drawn: observations[next(drawn)]  # type: ignore[misc]
        }
        envs: dict[str, Any] = {"MAWDepth-v0": GRPOVectorEnvironment(size, table=table)}
        for name, env in (envs | {"CartPole-v1": cart}).items():
            env.reset(seed=0)
            actions = generator.integers(env.single_action_space.n, size=size)
            functions[name] = partial(env.step, actions)
        times = interleaved(functions, torch.device("cpu"), rounds, budget=2.0)
        for name, found in times.items():
            width = 16 if name == "CartPole-v1" else observations.itemsize * observations.shape[1]
            reference, more = times["table[index]"], {"bytes per observation": width}
            case = f"{size} sub-environments"
            rows.append(Row("environment", case, name, found, reference, size, "steps", more=more))
        cart.close()
    return rows


def training_rows(
    table: DepthTable, num_envs: int, timesteps: int, rounds: int, device: torch.device
) -> list[Row]:
    """Training steps of GRPO and of SB3's PPO: same network, rollouts, one epoch of one batch."""
    first, second = (
        to_sb3(GRPOVectorEnvironment(num_envs, group_size=8, table=table)) for _ in range(2)
    )
    same: dict[str, Any] = {"n_steps": STEPS, "n_epochs": 1, "seed": 0, "device": device}
    ppo = PPO("MlpPolicy", first, batch_size=STEPS * num_envs, **same)
    grpo = GRPO("MlpPolicy", second, batch_size=None, advantage="outcome", group_size=8, **same)
    functions: dict[str, Callable[[], object]] = {
        "PPO": partial(ppo.learn, timesteps),
        "GRPO": partial(grpo.learn, timesteps),
    }
    times = interleaved(functions, device, rounds, budget=60.0)
    case = f"{num_envs} sub-environments, {timesteps} steps"
    return [
        Row("training", case, name, found, times["PPO"], timesteps, "steps")
        for name, found in times.items()
    ]


# --- search ----------------------------------------------------------------------------------


def synthetic_texts(
    embedder: Embedder, count: int, words: tuple[int, int], seed: int
) -> Iterator[str]:
    """Texts of random words, the r-th word of the vocabulary 1 / r as often as the first."""
    rng = np.random.default_rng(seed)
    tokens = embedder.text.tokens(range(embedder.text.vocabulary))
    known = np.array(sorted({token.strip("▁").lower() for token in tokens if token.isalpha()}))
    rng.shuffle(known)
    chance = 1 / np.arange(1, len(known) + 1)
    for some in steps(count, CHUNK):
        lengths = rng.integers(words[0], words[1] + 1, some.stop - some.start)
        drawn = known[rng.choice(len(known), lengths.sum(), p=chance / chance.sum())]
        yield from map(" ".join, np.split(drawn, lengths.cumsum()[:-1]))


def random_router(embedder: Embedder) -> DepthRouter:
    """A router of random weights: it costs what a learned one does."""
    generator = torch.Generator().manual_seed(0)
    depths, width = embedder.maw.depths, 64 * embedder.maw.heads
    layer = (torch.randn(depths, width, generator=generator), torch.zeros(depths))
    settings = {"encoder": embedder.fingerprint()}
    scale = (torch.zeros(width), torch.ones(width))
    return DepthRouter([layer], "relu", *scale, ("attention",), settings)


def size_rows(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000),
    queries: int = 10_000,
    device: str = "cpu",
) -> list[Row]:
    """For every size the documents encoded and indexed, and the queries routed and searched."""
    rows = []
    context = multiprocessing.get_context("spawn")  # a fork would begin with this process's memory
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
            given = (Path(folder), size, queries, device)
            indexed, searched, memory = pool.apply(_index_and_search, given)
            pool.close()  # so that the process ends by itself, and tidies up what tqdm has made
            pool.join()
        case, name = f"{size:,} documents", f"search of {queries:,}"
        rows += [
            Row("search", case, "encode and index", [indexed], (), size, "documents", memory),
            Row("search", case, name, [searched], (), queries, "queries", memory),
        ]
    return rows


def _index_and_search(
    folder: Path, size: int, queries: int, device: str
) -> tuple[float, float, int]:
    """Seconds to index and to search, and the most memory (bytes) that this process had."""
    embedder = untrained_embedder(())
    routed = RoutedEncoder(embedder, random_router(embedder), device=device)
    with (folder / "texts").open("w+", encoding="utf-8") as texts:
        # Written first, so that drawing them is not timed.
        texts.writelines(f"{one}\n" for one in synthetic_texts(embedder, size, DOCUMENT_WORDS, 0))
        texts.seek(0)
        start = time.perf_counter()
        ids = (f"d{number}" for number in range(size))
        routed.index(ids, texts, folder=folder / "index", hybrid=False)
        indexed = time.perf_counter() - start
    asked = list(synthetic_texts(embedder, queries, QUERY_WORDS, 1))
    start = time.perf_counter()
    routed.search(asked, K)
    searched = time.perf_counter() - start
    # Kilobytes on Linux.
    return indexed, searched, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def faiss_rows(
    size: int = 1_000_000,
    queries: int = 1_000,
    width: int = 256,
    rounds: int = 3,
    approximate: Sequence[str] = ("HNSW32", "HNSW32;efSearch=128"),
) -> list[Row]:
    """Exact search beside FAISS's on the same vectors, and what approximate indexes find of it."""
    import faiss

    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    # A low dimension inside, as texts have: in random directions alone nothing is near.
    basis = normal(32, width)
    vectors, asked = (
        normalize(normal(count, 32) @ basis + normal(count, width), dim=1)
        for count in (size, queries)
    )
    documents = DocumentIndex([str(number) for number in range(size)], vectors)
    flat = faiss.IndexFlatIP(width)
    flat.add(vectors.numpy())
    ways: dict[str, Callable[[], object]] = {
        "search": partial(rank, documents, asked, K),
        "FAISS IndexFlatIP": partial(flat.search, asked.numpy(), K),
    }
    exact = rank(documents, asked, K).documents
    more: dict[str, dict[str, float]] = {}
    for factory in approximate:
        start = time.perf_counter()
        index = SearchIndex.of(documents, "", kind=f"faiss:{factory}")
        built = time.perf_counter() - start
        found = index.rank(asked, K).documents
        recall = 100 * float((found[:, :, None] == exact[:, None, :]).any(1).double().mean())
        more[f"faiss:{factory}"] = {"s to build": built, "% recall": recall}
        ways[f"faiss:{factory}"] = partial(index.rank, asked, K)
    times = interleaved(ways, torch.device("cpu"), rounds, budget=3600.0)
    reference, case = times["FAISS IndexFlatIP"], f"{size:,} vectors"
    return [
        Row("search", case, name, own, reference, queries, "queries", more=more.get(name, {}))
        for name, own in times.items()
    ]
