"""What both environments read: a depth table seen through one choice of settings."""

import difflib
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from maw_gym.errors import InputError
from maw_gym.tables.depth_table import ALIGNMENTS, DepthTable, checked_blocks
from maw_gym.tables.rewards import check_weights
from maw_gym.tables.task import load_task

SPLITS: Final = ("encoder", "train", "validation", "test")
QUERY_ORDERS: Final = ("random", "sequential")
TERMS: Final = ("entropy", "focus", "alignment", "regret")


class Outcome(NamedTuple):
    """What the choice of a depth brought; floats, or float64 arrays of one shape.

    Attributes:
        reward: weighted sum of the next three.
        entropy: in [0, 1].
        focus: in [0, 1].
        alignment: in [0, 1].
        regret: reward of the query's best depth minus `reward`; >= 0.
    """

    reward: Any
    entropy: Any
    focus: Any
    alignment: Any
    regret: Any


class Bandit:
    """A contextual bandit with full information: N queries, D depths, O observed numbers.

    Args:
        table: the depth table; its arrays are only read.
        blocks: observation blocks, in order.
        alignment: kind of relevance alignment.
        weights: of entropy, focus and alignment in the reward.

    Attributes:
        query_ids: (N,) strings, as an object array.
        observations: (N, O) float32 in `observation_space`, read-only.
        outcomes: (N * D, 4) float32: reward, entropy, focus, alignment; read-only.
        best: (N,) float32, the reward of each query's best depth.
        num_depths: D.
    """

    def __init__(
        self, table: DepthTable, blocks: Sequence[str], alignment: str, weights: Sequence[float]
    ) -> None:
        self._settings: tuple[Any, ...] = (table, tuple(blocks), alignment, tuple(weights))
        self.num_depths = table.num_depths
        self.query_ids = np.array(table.query_ids, dtype=object)
        self.observation_space: spaces.Box = table.observation_space(blocks)
        self.action_space = spaces.Discrete(table.num_depths)
        # A view: the flag must not reach an array that belongs to the table.
        self.observations = np.asarray(table.observation(blocks)).view()
        self.observations.flags.writeable = False
        reward = table.reward(weights, alignment)
        # Side by side, so that the numbers of one choice come from one cache line.
        terms = (reward, table.entropy, table.focus, table.alignment(alignment))
        self.outcomes = np.stack(terms, axis=-1, dtype=np.float32).reshape(-1, len(terms))
        self.best = self.outcomes[:, 0].reshape(reward.shape).max(axis=1)
        self.outcomes.flags.writeable = False

    def __reduce__(self) -> tuple[type["Bandit"], tuple[Any, ...]]:
        # Rebuilt from the table, so that copies keep the read-only arrays and their views.
        return Bandit, self._settings

    def __len__(self) -> int:
        return len(self.query_ids)

    @cached_property
    def observation_rows(self) -> NDArray[np.object_]:
        """(N,) read-only rows of `observations`: taking one moves a pointer, not O numbers."""
        rows = np.empty(len(self), dtype=object)
        rows[:] = list(self.observations)
        return rows

    def pooled_attention(self, query: int) -> NDArray[np.float32]:
        """The query's attention averaged over depths and pooled (H, 8, 8), as observed."""
        table: DepthTable = self._settings[0]
        return np.asarray(table.attention[query]).reshape(-1, 8, 8)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {query_id: index for index, query_id in enumerate(self.query_ids)}

    def query_index(self, query_id: str) -> int:
        """Row of the query called `query_id`.

        Raises:
            InputError: there is none; the message names similar ones.
        """
        try:
            return self._index[query_id]
        except (KeyError, TypeError):
            known: list[str] = self.query_ids.tolist()
            # Comparing with every id takes seconds where there are a million.
            close = difflib.get_close_matches(str(query_id), known[:20_000], n=3) or known[:1]
            hint = " or ".join(repr(name) for name in close)
            raise InputError(
                f"no query {_shown(query_id)} among the {len(self)} of this environment; try {hint}"
            ) from None

    def outcome(self, query: int, depth: int) -> Outcome:
        """Outcome of one depth for one query, as floats."""
        reward, entropy, focus, alignment = self.outcomes[query * self.num_depths + depth].tolist()
        return Outcome(reward, entropy, focus, alignment, float(self.best[query]) - reward)

    def outcome_batch(self, queries: NDArray[np.int64], depths: NDArray[np.int64]) -> Outcome:
        """Outcomes of a batch: five contiguous float64 arrays shaped like `queries`."""
        chosen = self.outcomes.take(queries * self.num_depths + depths, axis=0)
        reward, entropy, focus, alignment = chosen.T.astype(np.float64, order="C")
        return Outcome(reward, entropy, focus, alignment, self.best.take(queries) - reward)

    def checked_action(self, action: Any) -> int:
        """`action` as an int in [0, D).

        Raises:
            InputError: it is none. A bool is not taken for a number.
        """
        try:
            depth = -1 if isinstance(action, (bool, np.bool_)) else operator.index(action)
        except TypeError:
            depth = -1
        if not 0 <= depth < self.num_depths:
            raise InputError(
                f"action must be an integer from 0 to {self.num_depths - 1};"
                f" got {_shown(action)} of type {type(action).__name__}"
            )
        return depth

    def checked_actions(self, actions: Any, count: int) -> NDArray[np.int64]:
        """`actions` as `count` numbers (count,) int64 in [0, D).

        Raises:
            InputError: another shape or type, or a number out of range.
        """
        try:
            given = np.asarray(actions)
        except ValueError:  # a ragged list
            given = np.asarray(None)
        if given.shape != (count,) or given.dtype.kind not in "iu":
            raise InputError(
                f"actions must be {count} integers from 0 to {self.num_depths - 1};"
                f" got {_shown(actions)} of shape {given.shape} and type {given.dtype}"
            )
        depths = given.astype(np.int64, copy=False)
        # Seen as unsigned, a negative number is a huge one: one pass checks both ends.
        if np.maximum.reduce(depths.view(np.uint64)) >= self.num_depths:
            place = int(((depths < 0) | (depths >= self.num_depths)).argmax())
            raise InputError(
                f"actions must be integers from 0 to {self.num_depths - 1};"
                f" sub-environment {place} got {given[place]}"
            )
        return depths


class QueryOrder:
    """The order in which queries come.

    Args:
        kind: ``"random"`` draws uniformly and independently; ``"sequential"`` walks through the
            queries in order and starts over after the last.
        size: number of queries.

    Attributes:
        position: the query that a sequential order shows next.
    """

    def __init__(self, kind: str, size: int) -> None:
        self.kind = kind
        self.size = size
        self.position = 0

    def restart(self) -> None:
        """Begin the walk anew; a random order has nothing to restart but its generator."""
        self.position = 0

    def take(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """The next `count` queries (count,)."""
        if self.kind == "random":
            # Half the time of generator.integers, and 2^53 is far above any number of queries; a
            # product of a double below 1 and an integer rounds to below that integer.
            return (generator.random(count) * self.size).astype(np.int64)
        start = self.position
        self.position = (start + count) % self.size
        return (start + np.arange(count)) % self.size


_bandits: WeakValueDictionary[tuple[Any, ...], Bandit] = WeakValueDictionary()


def load_bandit(
    *,
    dataset: str,
    encoder: str,
    split: str,
    observation: Sequence[str] | str,
    alignment: str,
    reward_weights: Sequence[float],
    query_order: str,
    device: str,
    table: DepthTable | None,
) -> tuple[Bandit, QueryOrder]:
    """Check the settings of an environment, then load what it reads.

    Environments with equal settings share one `Bandit` in a process. A `table` given stands for
    whatever `dataset`, `encoder`, `split` and `device` would have loaded.

    Raises:
        InputError: a setting is unknown, or the split has no query.
    """
    blocks = checked_blocks(observation)
    weights = check_weights(reward_weights)
    _one_of("alignment", alignment, ALIGNMENTS)
    _one_of("query_order", query_order, QUERY_ORDERS)
    _one_of("split", split, SPLITS)
    if table is None:
        task = load_task(dataset, encoder, device)
        queries = task.collection.splits
        if not queries[split].ids:
            counts = ", ".join(f"{name} {len(queries[name].ids)}" for name in SPLITS)
            raise InputError(f"split {split!r} of {dataset!r} has no query; there are: {counts}")
        table = task.table(split)
    if len(table) == 0:
        raise InputError("the depth table has no query; give one with at least one row")
    key = (id(table), blocks, alignment, weights)
    bandit = _bandits.get(key)
    if bandit is None:
        bandit = _bandits[key] = Bandit(table, blocks, alignment, weights)
    return bandit, QueryOrder(query_order, len(bandit))


def checked_options(options: dict[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """Options of a reset.

    Raises:
        InputError: an option that is not `known`, which would otherwise be dropped unseen.
    """
    for name in options or {}:
        if name not in known:
            raise InputError(f"unknown reset option {name!r}; there is {' and '.join(known)}")
    return options or {}


def _one_of(setting: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"unknown {setting} {value!r}; choose one of {', '.join(known)}")


def _shown(value: object) -> str:
    """`value` on one line, cut to a readable length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:79] + "…"
