"""Approximate search by FAISS, an optional dependency: any index that its factory builds.

Source: Douze et al., The Faiss library, arXiv:2401.08281, 2024.
"""

import logging
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files.cache import written_whole
from maw_gym.files.tensor_files import check_readable
from maw_gym.retrieval.document_index import DocumentIndex, steps
from maw_gym.retrieval.search import MARGIN, Ranking, merged

TRAINING_VECTORS: Final = 100_000  # that an index learns its clusters or codes from, at most
ADDED: Final = 65_536  # vectors added at once


class ApproximateIndex:
    """FAISS finds documents, exact cosines put them in order.

    Args:
        documents: what is searched.
        index: a FAISS index of their vectors by inner product.
    """

    def __init__(self, documents: DocumentIndex, index: Any) -> None:
        self.documents = documents
        self.index = index

    @classmethod
    def of(cls, documents: DocumentIndex, factory: str) -> "ApproximateIndex":
        """Build an index.

        Args:
            documents: what is to be searched.
            factory: a string that `faiss.index_factory` knows, for instance ``"HNSW32"``; behind a
                semicolon may stand parameters of the search as `faiss.ParameterSpace` knows them:
                ``"HNSW32;efSearch=128"``, ``"IVF1024,Flat;nprobe=16"``.

        Raises:
            InputError: FAISS is not installed, does not know the string, or cannot build the index
                of so few documents.
        """
        faiss = _faiss()
        vectors = documents.vectors
        try:
            kind, _, parameters = factory.partition(";")
            index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                some = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAINING_VECTORS))
                index.train(_floats(vectors[torch.from_numpy(some.astype(np.int64))]))
            for rows in steps(len(vectors), ADDED):
                index.add(_floats(vectors[rows]))
            if parameters:
                faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as problem:
            raise InputError(
                f"FAISS cannot build {factory!r} of {len(vectors)} documents: {_reason(problem)}"
            ) from None
        return cls(documents, index)

    def rank(self, queries: Tensor, k: int) -> Ranking:
        """About the k best documents of every query (B, h), in the order of `search.rank`."""
        count = min(k + MARGIN, len(self.documents))
        _, found = self.index.search(_floats(queries), count)
        queries = queries.to(self.documents.device, torch.float32)
        rankings = []
        for some in self.documents.gathered(count, len(queries)):
            scores = self.documents.exact_scores(queries[some], found[some])
            listed = torch.from_numpy(found[some]).to(scores.device)
            rankings.append(merged([Ranking(scores, listed)], self.documents.tie_rank, k))
        if not rankings:
            return Ranking(torch.zeros(0, count), torch.zeros(0, count, dtype=torch.int64))
        return Ranking(*map(torch.cat, zip(*rankings, strict=True)))

    def save(self, path: Path) -> None:
        """Write FAISS's own file, whole or not at all."""
        with written_whole(path) as temporary:
            _faiss().write_index(self.index, str(temporary))

    @classmethod
    def load(cls, path: Path, documents: DocumentIndex) -> "ApproximateIndex":
        """The index of these documents that `save` has written.

        Raises:
            DamagedFileError: the file is damaged, or of other documents.
            InputError: it is not there, or FAISS is not installed.
        """
        faiss = _faiss()
        check_readable(path, "FAISS index")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as problem:
            raise DamagedFileError(f"{path} is no FAISS index: {_reason(problem)}") from None
        shape = tuple(documents.vectors.shape)
        if (index.ntotal, index.d) != shape or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise DamagedFileError(
                f"{path} is of {index.ntotal} vectors of width {index.d}, not of these {shape}"
            )
        return cls(documents, index)


def _faiss() -> Any:
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells what it tries
    try:
        import faiss
    except ImportError:
        raise InputError(
            "approximate search needs FAISS; install it by pip install 'maw_gym[faiss]'"
        ) from None
    return faiss


def _floats(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.to("cpu", torch.float32).numpy())


def _reason(problem: Exception) -> str:
    """What FAISS says, without the place in its source."""
    return re.sub(r"^.*\.cpp:\d+: (Error: )?", "", str(problem).splitlines()[0])
