"""A depth table small enough to work out by hand, and random ones."""

from typing import Any

import numpy as np

from maw_gym.tables.depth_table import TERMS, DepthTable

APPLE, BERRY, CHERRY = "fruit/apple", "fruit/berry", "fruit/cherry"


def _floats(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


# Three queries, four depths, one head; the third query has a single token.
ENTROPY = _floats([[0.0, 0.2, 0.6, 1.0], [0.1, 0.3, 0.5, 0.9], [0.0, 0.0, 0.0, 0.0]])
FOCUS = _floats([[1.0, 0.8, 0.4, 0.1], [0.9, 0.7, 0.5, 0.2], [1.0, 1.0, 1.0, 1.0]])
TABLE = DepthTable(
    query_ids=(APPLE, BERRY, CHERRY),
    entropy=ENTROPY,
    focus=FOCUS,
    ndcg=_floats([[0.0, 0.5, 1.0, 0.25], [1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]]),
    listwise=_floats([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]]),
    blocks={
        "attention": np.eye(3, 64, dtype=np.float32),
        "profile": np.concatenate([ENTROPY, FOCUS], axis=1),
        "retrieval": np.arange(132, dtype=np.float32).reshape(3, 44) / 132,  # 11 kinds of 4 depths
        "content": _floats([[0.6, 0.8], [-1.0, 0.0], [0.0, 1.0]]),
    },
)
# 0.3 entropy + 0.3 focus + 0.4 nDCG of the numbers above.
REWARD = [[0.3, 0.5, 0.7, 0.43], [0.7, 0.5, 0.3, 0.33], [0.3, 0.3, 0.3, 0.5]]
REGRET = [[0.4, 0.2, 0.0, 0.27], [0.0, 0.2, 0.4, 0.37], [0.2, 0.2, 0.2, 0.0]]


def random_table(queries: int, depths: int, seed: int = 0) -> DepthTable:
    """A table of random numbers, one head, for comparisons."""
    draw = np.random.default_rng(seed).random
    terms: dict[str, Any] = {name: draw((queries, depths), np.float32) for name in TERMS}
    widths = {"attention": 64, "content": 5, "retrieval": 11 * depths}
    blocks = {name: draw((queries, width), np.float32) for name, width in widths.items()}
    blocks["profile"] = np.concatenate([terms["entropy"], terms["focus"]], axis=1)
    ids = tuple(f"query {row}" for row in range(queries))
    return DepthTable(ids, **terms, blocks=blocks)
