"""Which of several encoders a collection gets, and on whose word."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maw_gym.corpora import Collection, QuerySet

UNTRAINED: Final = "untrained"
JUDGES: Final = 2000  # so many queries at most are asked


def judges(collection: Collection, learned_from: bool) -> QuerySet:
    """The queries that choose an encoder: all outside test that no candidate has learned from.

    Args:
        collection: for which an encoder is chosen.
        learned_from: whether a candidate has learned from the collection's `encoder` split.
    """
    splits = ("validation", "train") if learned_from else ("validation", "train", "encoder")
    parts = [collection.splits[split] for split in splits]
    ids = tuple(query for part in parts for query in part.ids)
    texts = tuple(text for part in parts for text in part.texts)
    relevance = tuple(grades for part in parts for grades in part.relevance)
    return QuerySet(ids[:JUDGES], texts[:JUDGES], relevance[:JUDGES])


def choose(scores: Mapping[str, NDArray[np.floating]]) -> dict[str, Any]:
    """The candidate of the largest mean, if it beats the untrained one by a standard error.

    A candidate takes the untrained encoder's place only where its advantage, the mean difference of
    the two over queries, exceeds the standard error of that mean: with few queries the largest mean
    is often luck.

    Args:
        scores: nDCG@10 of each query (N,) by the candidate's name; one is `UNTRAINED`.

    Returns:
        JSON values: ``chosen``, ``queries`` (N), and of each of the ``candidates`` its mean
        ``nDCG@10``, its ``advantage`` and the ``standard error`` of that (null of one query).
    """
    before = np.asarray(scores[UNTRAINED], np.float64)
    chosen, best, candidates = UNTRAINED, before.mean() if len(before) else 0.0, {}
    for name, values in scores.items():
        difference = np.asarray(values, np.float64) - before
        count = len(difference)
        mean = float(np.mean(values)) if count else 0.0
        advantage = float(difference.mean()) if count else 0.0
        error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else None
        candidates[name] = {"nDCG@10": mean, "advantage": advantage, "standard error": error}
        if error is not None and advantage > error and mean > best:
            chosen, best = name, mean
    return {"chosen": chosen, "queries": len(before), "candidates": candidates}
