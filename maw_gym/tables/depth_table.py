"""DepthTable: for every query and depth the state and the reward terms.

A table is independent of the observation blocks and of the reward, which are read from it: see
`maw_gym.tables.rewards.RewardSpec`. On disk it is one safetensors file, memory-mapped on loading.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from maw_gym.errors import InputError
from maw_gym.tables.blocks import ALIGNMENTS, BLOCKS, PER_DEPTH_BLOCKS, checked_blocks
from maw_gym.tables.columns import column_range

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DepthTable:
    """One row per query; D depths, H heads, h hidden width. Arrays may be read-only.

    Attributes:
        query_ids: N ids in the split's order.
        attention: (N, 64 H) in [0, 1], the pooled mean attention of unit length.
        entropy: (N, D) in [0, 1].
        focus: (N, D) in [0, 1].
        ndcg: (N, D) in [0, 1], nDCG@10 of the candidates ranked through each depth.
        listwise: (N, D) in [0, 1], softmax mass of the relevant documents through each depth.
        retrieval: (N, 11 D), what the rankings look like without judgments, see
            `maw_gym.retrieval.ranking.STATISTICS`.
        content: (N, h) in [-1, 1], mean hidden state of unit length.
        groups: N groups of the queries, see `Collection.query_groups`, or none.
    """

    query_ids: tuple[str, ...]
    attention: Floats
    entropy: Floats
    focus: Floats
    ndcg: Floats
    listwise: Floats
    retrieval: Floats
    content: Floats
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def num_depths(self) -> int:
        """D."""
        return int(self.entropy.shape[1])

    def alignment(self, kind: str) -> Floats:
        """Relevance alignment (N, D) in [0, 1] of the kind ``"ndcg"`` or ``"listwise"``.

        Raises:
            InputError: another kind.
        """
        if kind not in ALIGNMENTS:
            raise InputError(f"unknown alignment {kind!r}; choose one of {', '.join(ALIGNMENTS)}")
        return self.ndcg if kind == "ndcg" else self.listwise

    def block(self, name: str) -> Floats:
        """One observation block (N, width); see `observation_space` for widths and ranges.

        Raises:
            InputError: an unknown block.
        """
        if name not in BLOCKS:
            raise InputError(f"unknown observation block {name!r}; choose from {', '.join(BLOCKS)}")
        if name == "profile":
            return np.concatenate([self.entropy, self.focus], axis=1)
        block: Floats = getattr(self, name)
        return block

    def numbers_per_depth(self, blocks: Sequence[str]) -> int:
        """How many numbers of the blocks belong to each depth; 0 where some belong to none."""
        if not set(blocks) <= set(PER_DEPTH_BLOCKS):
            return 0
        return sum(int(self.block(name).shape[1]) for name in blocks) // self.num_depths

    def observation(self, blocks: Sequence[str]) -> Floats:
        """Observations (N, O): the blocks side by side, in the order given, C-contiguous."""
        return np.ascontiguousarray(
            np.concatenate([self.block(name) for name in checked_blocks(blocks)], axis=1)
        )

    def observation_space(self, blocks: Sequence[str]) -> spaces.Box:
        """Box of the observation, see `maw_gym.tables.columns.column_range`."""
        ranges = [column_range(name, self.block(name).shape[1]) for name in checked_blocks(blocks)]
        low, high = (np.concatenate(bounds) for bounds in zip(*ranges, strict=True))
        return spaces.Box(low, high, dtype=np.float32)
