"""Search in many documents: time and memory by their number, beside FAISS on the same vectors.

Texts are synthetic: words of the text encoder's vocabulary, drawn with Zipf's law. Each size is
indexed and searched in a process of its own, whose peak of resident memory is the row's memory.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import normalize

from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.retrieval.documents import DocumentIndex, steps
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import rank
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.runners.benchmarks.measuring import Row, interleaved, row

DOCUMENT_WORDS: Final = (20, 60)  # of a synthetic document, drawn evenly
QUERY_WORDS: Final = (4, 12)
CHUNK: Final = 10_000  # texts drawn at once
K: Final = 10  # documents wanted per query


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
        for text in np.split(drawn, lengths.cumsum()[:-1]):
            yield " ".join(text)


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
    **index: Any,
) -> list[Row]:
    """For every size the documents encoded and indexed, and the queries routed and searched."""
    rows = []
    context = multiprocessing.get_context("spawn")  # a fork would begin with this process's memory
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
            given = (Path(folder), size, queries, device, {"hybrid": False} | index)
            indexed, searched, memory = pool.apply(_index_and_search, given)
            pool.close()  # so that the process ends by itself, and tidies up what tqdm has made
            pool.join()
        for name, seconds, count, unit in (
            ("encode and index", indexed, size, "documents/s"),
            (f"search of {queries:,}", searched, queries, "queries/s"),
        ):
            case = f"{size:,} documents"
            rows.append(row("search", case, name, [seconds], None, count, unit, memory))
    return rows


def _index_and_search(
    folder: Path, size: int, queries: int, device: str, settings: dict[str, Any]
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
        routed.index(ids, texts, folder=folder / "index", **settings)
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

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

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
        row("search", case, name, own, reference, queries, "queries/s", more=more.get(name))
        for name, own in times.items()
    ]
