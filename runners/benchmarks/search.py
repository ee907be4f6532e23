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

from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.retrieval.documents import DocumentIndex, steps
from maw_gym.retrieval.index import SearchIndex
from maw_gym.retrieval.search import rank
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.routers.routed_encoder import RoutedEncoder
from runners.benchmarks.measuring import Row, interleaved, row

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


def write_texts(path: Path, texts: Iterator[str]) -> None:
    """Write texts, one a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts)


def random_router(embedder: Embedder) -> DepthRouter:
    """A router of random weights: it costs what a learned one does."""
    generator = torch.Generator().manual_seed(0)
    depths, width = embedder.maw.depths, 64 * embedder.maw.heads
    return DepthRouter(
        [(torch.randn(depths, width, generator=generator), torch.zeros(depths))],
        "relu",
        torch.zeros(width),
        torch.ones(width),
        ("attention",),
        {"encoder": embedder.fingerprint()},
    )


def size_rows(
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000),
    queries: int = 10_000,
    device: str = "cpu",
    **index: Any,
) -> list[Row]:
    """For every size the documents encoded and indexed, and the queries routed and searched."""
    rows = []
    settings = {"hybrid": False} | index
    context = multiprocessing.get_context("spawn")  # a fork would begin with this process's memory
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        embedder = untrained_embedder(())
        write_texts(place / "queries", synthetic_texts(embedder, queries, QUERY_WORDS, 1))
        for size in sizes:
            write_texts(place / "texts", synthetic_texts(embedder, size, DOCUMENT_WORDS, 0))
            with context.Pool(1) as pool:
                seconds, found, memory = pool.apply(
                    _index_and_search, (place, size, device, settings)
                )
                pool.close()  # so that the process ends by itself, and tidies up what tqdm has made
                pool.join()
            case = f"{size:,} documents"
            rows.append(_once(case, "encode and index", seconds, size, "documents/s", memory))
            rows.append(_once(case, f"search of {queries:,}", found, queries, "queries/s", memory))
    return rows


def _index_and_search(
    place: Path, size: int, device: str, settings: dict[str, Any]
) -> tuple[float, float, int]:
    """Seconds to index and to search, and the most memory (bytes) that this process had."""
    embedder = untrained_embedder(())
    routed = RoutedEncoder(embedder, random_router(embedder), device=device)
    with (place / "texts").open(encoding="utf-8") as texts:
        start = time.perf_counter()
        ids = (f"d{number}" for number in range(size))
        routed.index(ids, texts, folder=place / f"index-{size}", **settings)
        indexed = time.perf_counter() - start
    queries = (place / "queries").read_text(encoding="utf-8").splitlines()
    start = time.perf_counter()
    routed.search(queries, K)
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
    # A low dimension inside, as texts have: in random directions alone nothing is near.
    basis = torch.randn(32, width, generator=generator)
    vectors, asked = (
        torch.nn.functional.normalize(
            torch.randn(count, 32, generator=generator) @ basis
            + torch.randn(count, width, generator=generator),
            dim=1,
        )
        for count in (size, queries)
    )
    documents = DocumentIndex([str(number) for number in range(size)], vectors)
    flat = faiss.IndexFlatIP(width)
    flat.add(vectors.numpy())
    ways: dict[str, Callable[[], object]] = {
        "search": partial(rank, documents, asked, K),
        "FAISS IndexFlatIP": partial(flat.search, asked.numpy(), K),
    }
    device = torch.device("cpu")
    times = interleaved(ways, device, rounds, budget=3600.0)
    reference = times["FAISS IndexFlatIP"]
    case = f"{size:,} vectors"
    rows = [
        row("search", case, name, own, reference, queries, "queries/s")
        for name, own in times.items()
    ]
    exact = rank(documents, asked, K).documents
    for factory in approximate:
        start = time.perf_counter()
        index = SearchIndex.of(documents, "", kind=f"faiss:{factory}")
        built = time.perf_counter() - start
        found = index.rank(asked, K).documents
        recall = (found[:, :, None] == exact[:, None, :]).any(1).double().mean()
        search = partial(index.rank, asked, K)
        own = interleaved({factory: search}, device, rounds, 3600.0)
        more = {"s to build": built, "% recall": 100 * float(recall)}
        name = f"faiss:{factory}"
        rows.append(
            row("search", case, name, own[factory], reference, queries, "queries/s", more=more)
        )
    return rows


def _once(case: str, name: str, seconds: float, count: int, unit: str, memory: int) -> Row:
    return row("search", case, name, [seconds], count=count, unit=unit, memory=memory)
