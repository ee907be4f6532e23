"""A small index whose scores are exact and mostly tied."""

import numpy as np
import torch

from maw_gym.retrieval.documents import EMPTY_SCORE, DocumentIndex, Relevant


class Lattice:
    """Vectors of few values: scores are exact, most of them tied, and many documents are equal."""

    def __init__(self, seed, queries=12, depths=5, documents=83):
        rng = np.random.default_rng(seed)
        self.docs = rng.integers(-1, 2, (documents, 3)).astype(np.float32) / 2
        self.docs[[4, 40]] = 0
        self.queries = rng.integers(-1, 2, (queries, depths, 3)).astype(np.float32) / 2
        self.queries[0] = 0
        # "9" before "83": the order of strings is not that of numbers
        self.ids = [str(n) for n in rng.permutation(200)[:documents]]
        self.relevant = []
        for _ in range(queries):
            found = rng.choice(documents, rng.integers(1, 30), replace=False)
            self.relevant.append(Relevant(found, rng.integers(1, 4, len(found)).astype(np.float32)))
        self.scores = self.queries @ self.docs.T
        self.scores[:, :, (self.docs == 0).all(1)] = EMPTY_SCORE
        self.index = DocumentIndex(self.ids, torch.from_numpy(self.docs))
        self.lists = [
            rng.choice(documents, size, replace=False)
            for size in [0, 1, 5, 10, 11, *rng.integers(1, documents, queries - 5)]
        ]
