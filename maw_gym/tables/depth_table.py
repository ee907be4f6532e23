"""DepthTable: of every query and depth the terms of the reward, and what a router may observe.

Blocks and reward are chosen when a table is read, see `maw_gym.envs.bandit.Bandit`. `BLOCKS` is the
registry of observation blocks, read by tables, spaces, networks and routers: a new block is one
entry there. A table's file is memory-mapped.

Notation: N queries, B of a batch, D depths, H heads, h hidden width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from maw_gym import files
from maw_gym.errors import DamagedFileError, InputError, checked_texts, one_of

if TYPE_CHECKING:  # the settings of the runners ask for names, and need no torch
    from torch import Tensor

    from maw_gym.attention.reference import DepthStatistics
    from maw_gym.encoders.embedder import Embedder

Floats = NDArray[np.float32]

ALIGNMENTS: Final = ("ndcg", "listwise")
KIND: Final = "table"  # of files
TERMS: Final = ("entropy", "focus", *ALIGNMENTS)  # what rewards are made of, each in [0, 1]
NETWORKS: Final = ("auto", "shared", "mlp")  # that look at an observation, see `is_shared`
ROUNDING: Final = 1e-3  # what a number may be outside its range by; more is a diverged encoder


class Seen:
    """What a router may know of a batch of queries, each part computed when it is asked for.

    Args:
        embedder: with a MAW encoder.
        ids: (B, S) int64, the queries' tokens.
        mask: (B, S) bool, which of them are there.
        search: from every depth's embeddings (B, D, h) to the statistics (B, 11 D) of
            `maw_gym.retrieval.ranking.ranking_statistics`; it reads no judgement.
    """

    def __init__(
        self,
        embedder: "Embedder",
        ids: "Tensor",
        mask: "Tensor",
        search: Callable[["Tensor"], "Tensor"],
    ) -> None:
        self.embedder, self.ids, self.mask, self.search = embedder, ids, mask, search

    @cached_property
    def hidden(self) -> "Tensor":
        """The text encoder's hidden states (B, S, h)."""
        return self.embedder.text.hidden(self.ids, self.mask)

    @cached_property
    def statistics(self) -> "DepthStatistics":
        """Every depth's statistics, exact: a depth must do what the table says when it is used."""
        return self.embedder.maw.depth_statistics(self.ids, self.hidden, self.mask, exact=True)

    @property
    def profile(self) -> "Tensor":
        """Entropy, then focus, of every depth: (B, 2 D)."""
        import torch

        return torch.cat([self.statistics.entropy, self.statistics.focus], 1)

    @property
    def rankings(self) -> "Tensor":
        """What the rankings through every depth look like, (B, 11 D)."""
        return self.search(self.statistics.embeddings)

    @property
    def content(self) -> "Tensor":
        """Mean hidden states (B, h) of unit length."""
        from maw_gym.encoders.maw import mean_content

        return mean_content(self.hidden, self.mask)


class Block(NamedTuple):
    """A part of the observation that is asked for by its name."""

    numbers: str  # how many there are, for people
    about: str  # what it is, for people
    of: "Callable[[Seen], Tensor]"  # the numbers (B, width) of a batch of queries
    low: float | Sequence[float] = 0  # the smallest that a number can be; of several kinds, of each
    high: float | Sequence[float] = 1
    per_depth: int = 0  # kinds of numbers of every depth, the D of one kind side by side

    def bounds(self, width: int) -> tuple[Floats, Floats]:
        """Smallest and largest values (width,) of the block's numbers."""
        kinds = np.array(self.low, np.float32), np.array(self.high, np.float32)
        low, high = (bound.repeat(width // bound.size) for bound in kinds)
        return low, high


BLOCKS: Final[dict[str, Block]] = {
    "attention": Block(
        "64 * H",
        "mean attention over depths, pooled, of unit length",
        lambda seen: seen.statistics.state,
    ),
    "profile": Block(
        "2 * D",
        "entropy of every depth, then focus of every depth",
        lambda seen: seen.profile,
        per_depth=2,
    ),
    "retrieval": Block(
        "11 * D",
        "what a search through every depth finds, see below",
        lambda seen: seen.rankings,
        # First, two gaps; mean, spread and entropy of ten and of fifty; overlap, same first.
        low=(-1, 0, 0, -1, 0, 0, -1, 0, 0, 0, 0),
        high=(1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1),
        per_depth=11,
    ),
    "content": Block(
        "h",
        "mean of the tokens' hidden states, of unit length",
        lambda seen: seen.content,
        low=-1,
    ),
}


def checked_blocks(blocks: Sequence[str] | str) -> tuple[str, ...]:
    """Names of different observation blocks as a tuple; a single name may stand alone."""
    names = (blocks,) if isinstance(blocks, str) else tuple(checked_texts(blocks, "blocks"))
    if not names or len(set(names)) != len(names):
        raise InputError(
            f"observation must name one or more different blocks of {', '.join(BLOCKS)};"
            f" got {names!r}"
        )
    for name in names:
        one_of("observation block", name, tuple(BLOCKS))
    return names


def numbers_per_depth(blocks: Sequence[str]) -> int:
    """How many numbers of the blocks belong to each depth; 0 where some belong to none."""
    kinds = [BLOCKS[name].per_depth for name in blocks]
    return sum(kinds) if all(kinds) else 0


def is_shared(network: str, observation: Sequence[str]) -> bool:
    """Whether one network scores every depth by its own numbers (True) or an MLP takes them all.

    Raises:
        InputError: an unknown network, or "shared" with a block that has no numbers of every depth.
    """
    one_of("network", network, NETWORKS)
    blocks = checked_blocks(observation)
    alone = [name for name in blocks if not BLOCKS[name].per_depth]
    if network == "shared" and alone:
        raise InputError(
            f"a shared network wants numbers of every depth, and observation block {alone[0]!r} has"
            " none; leave it out or take network mlp"
        )
    return network != "mlp" and not alone


def observed(block: str, seen: Seen) -> Floats:
    """A block's numbers (B, width) of queries seen; `in_range` says what is refused."""
    values: Floats = BLOCKS[block].of(seen).float().cpu().numpy()
    return in_range(block, values, *BLOCKS[block].bounds(values.shape[1]))


def nothing_observed(block: str, embedder: "Embedder") -> Floats:
    """A block's numbers (0, width) of no query, which tell their width."""
    import torch

    token = torch.zeros(1, 1, dtype=torch.long, device=embedder.device)
    kinds = BLOCKS["retrieval"].per_depth
    seen = Seen(embedder, token, token == 0, lambda of: of.new_zeros(1, kinds * of.shape[1]))
    with torch.no_grad():
        return observed(block, seen)[:0]


def in_range(name: str, values: Floats, low: ArrayLike, high: ArrayLike) -> Floats:
    """Values (B, width) cut to their range, which a Box demands, where roundings have left it."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if not ((values >= low - ROUNDING) & (values <= high + ROUNDING)).all():  # NaN neither
        raise FloatingPointError(
            f"{name} outside [{low.min():g}, {high.max():g}]; the encoder has probably diverged"
        )
    return np.clip(values, low, high)


@dataclass(frozen=True)
class DepthTable:
    """One row per query. Arrays may be read-only.

    Attributes:
        query_ids: N ids in the split's order.
        entropy: (N, D) in [0, 1].
        focus: (N, D) in [0, 1].
        ndcg: (N, D) in [0, 1], nDCG@10 of the candidates ranked through each depth.
        listwise: (N, D) in [0, 1], softmax mass of the relevant documents through each depth.
        blocks: observation blocks (N, width) by name, see `BLOCKS`.
        groups: N groups of the queries, see `Collection.query_groups`, or none.
    """

    query_ids: tuple[str, ...]
    entropy: Floats
    focus: Floats
    ndcg: Floats
    listwise: Floats
    blocks: Mapping[str, Floats] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, query_ids: tuple[str, ...], columns: Mapping[str, Floats]) -> Self:
        """The table of the four terms and the blocks, by name."""
        blocks = {name: values for name, values in columns.items() if name not in TERMS}
        terms: dict[str, Any] = {name: columns[name] for name in TERMS}
        return cls(query_ids, **terms, blocks=blocks)

    @property
    def columns(self) -> dict[str, Floats]:
        """The terms and the blocks, by name."""
        return {name: getattr(self, name) for name in TERMS} | dict(self.blocks)

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def num_depths(self) -> int:
        """D."""
        return int(self.entropy.shape[1])

    def alignment(self, kind: str) -> Floats:
        """Relevance alignment (N, D) in [0, 1] of the kind ``"ndcg"`` or ``"listwise"``."""
        one_of("alignment", kind, ALIGNMENTS)
        return self.columns[kind]

    def block(self, name: str) -> Floats:
        """One observation block (N, width); an InputError where this table does not have it."""
        if name not in self.blocks:
            there = ", ".join(self.blocks) or "none"
            raise InputError(f"this table has no observation block {name!r}; it has {there}")
        return self.blocks[name]

    def observation(self, blocks: Sequence[str] | str) -> Floats:
        """Observations (N, O): the blocks side by side, in the order given, C-contiguous."""
        parts = [self.block(name) for name in checked_blocks(blocks)]
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def observation_space(self, blocks: Sequence[str] | str) -> spaces.Box:
        """Box of one observation (O,), with the range of each block."""
        names = checked_blocks(blocks)
        bounds = [BLOCKS[name].bounds(self.block(name).shape[1]) for name in names]
        low, high = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
        return spaces.Box(low, high, dtype=np.float32)


def write_table(path: Path, table: DepthTable) -> None:
    """Write a table, without its groups, as one file."""
    import torch

    ids = np.frombuffer(json.dumps(list(table.query_ids)).encode(), np.uint8).copy()
    tensors = {name: torch.from_numpy(values) for name, values in table.columns.items()}
    files.write(path, tensors | {"query_ids": torch.from_numpy(ids)}, KIND, {})


def read_table(path: Path, query_ids: Sequence[str] | None = None) -> DepthTable:
    """The table at `path`, of these queries unless None; its columns are read-only memory maps."""
    tensors = files.read(path, KIND).tensors
    try:
        ids = tuple(json.loads(tensors.pop("query_ids").numpy().tobytes()))
        depths = tensors["entropy"].shape[1]
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a depth table ({error}); delete it") from None
    widths: dict[str, int | None] = dict.fromkeys(TERMS, depths)
    widths |= {name: block.per_depth * depths or None for name, block in BLOCKS.items()}
    files.check_tensors(path, tensors, {name: (len(ids), width) for name, width in widths.items()})
    if query_ids is not None and ids != tuple(query_ids):
        raise DamagedFileError(f"{path} is the table of other queries than its name says")
    columns = {name: tensors[name].numpy() for name in widths}
    for column in columns.values():
        column.flags.writeable = False
    return DepthTable.of(ids, columns)
