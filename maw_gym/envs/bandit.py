"""What both environments read: a depth table seen through one choice of settings."""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from maw_gym.errors import InputError, checked_int, one_of, shown
from maw_gym.tables.depth_table import ALIGNMENTS, DepthTable

TERMS: Final = ("entropy", "focus", "alignment")
DEFAULT_WEIGHTS: Final = (0.3, 0.3, 0.4)  # of entropy, focus and alignment
# Range of the largest of them: squares of rewards, and sums over tables, are float32 numbers.
LARGEST_WEIGHT: Final = (1e-6, 1e6)
SMALLEST_GAP: Final = 1e-6  # below it, a share of the random-to-oracle gap means nothing


@dataclass(frozen=True)
class RewardSpec:
    """Which reward: the weights of its three terms, and the kind of the third.

    Attributes:
        weights: of entropy, focus and alignment: three finite numbers >= 0, not all 0, of which the
            largest is from 1e-6 to 1e6.
        alignment: ``"ndcg"`` or ``"listwise"``.

    Raises:
        InputError: other weights, or another alignment.
    """

    weights: Sequence[float] = DEFAULT_WEIGHTS
    alignment: str = "ndcg"

    def __post_init__(self) -> None:
        """Check the fields."""
        low, high = LARGEST_WEIGHT
        try:
            weights = tuple(float(weight) for weight in self.weights)
        except (TypeError, ValueError, OverflowError):
            weights = ()
        positive = all(weight >= 0 for weight in weights)  # which NaN is not
        if len(weights) != 3 or not positive or not low <= max(weights) <= high:
            raise InputError(
                "reward_weights must be three finite numbers >= 0, not all 0 (entropy, focus,"
                f" alignment), the largest from {low:g} to {high:g}, such as {DEFAULT_WEIGHTS};"
                f" got {self.weights!r}"
            )
        object.__setattr__(self, "weights", weights)
        one_of("alignment", self.alignment, ALIGNMENTS)

    def blend(self, entropy: Any, focus: Any, alignment: Any) -> Any:
        """The reward of its three terms, arrays in [0, 1] that broadcast, in their precision.

        With the default weights it is in [0, 1], as each term is.
        """
        w_entropy, w_focus, w_alignment = self.weights
        return w_entropy * entropy + w_focus * focus + w_alignment * alignment

    def of(self, table: DepthTable) -> NDArray[np.float32]:
        """Reward (N, D) of every query and depth of a table."""
        alignment = table.alignment(self.alignment)
        return np.asarray(self.blend(table.entropy, table.focus, alignment))


DEFAULT_REWARD: Final = RewardSpec()
NDCG: Final = RewardSpec((0.0, 0.0, 1.0))  # retrieval alone: the reward is nDCG@10


def gap_closed(mean: float, random: float, oracle: float) -> float | None:
    """Share of the gap between chance and hindsight: ``(mean - random) / (oracle - random)``.

    Of the mean rewards of the depths chosen, of depths drawn uniformly and of the best depths; None
    where the denominator is under 1e-6.
    """
    gap = oracle - random
    return (mean - random) / gap if gap >= SMALLEST_GAP else None


class Outcome(NamedTuple):
    """What the choice of a depth brought; floats, or float64 arrays (B,).

    `reward` is the weighted sum of `entropy`, `focus` and `alignment`, each in [0, 1]; `regret` the
    reward of the query's best depth minus `reward`; `random` the expected reward of a depth drawn
    uniformly.
    """

    reward: Any
    entropy: Any
    focus: Any
    alignment: Any
    regret: Any
    random: Any


class RewardSummary(NamedTuple):
    """Mean reward of depths, of depths drawn uniformly (exact), of one depth for all queries, if
    one was chosen on others, and of each query's best depth; and `gap_closed` of them.
    """

    mean: float
    random: float
    best_fixed: float | None
    oracle: float
    gap_closed: float | None


class Bandit:
    """A contextual bandit with full information: N queries, D depths, O observed numbers.

    The one view of rewards: environments read a choice's `outcome`, learners the rewards of every
    depth, reports the means. Arrays are computed at first use and read-only.

    Args:
        table: the depth table; its arrays are only read.
        blocks: observation blocks, in order; none where nothing is to be observed.
        reward: weights and alignment.

    Attributes:
        num_depths: D.
        query_ids: (N,) strings, as an object array.
    """

    def __init__(
        self,
        table: DepthTable,
        blocks: Sequence[str] | str = (),
        reward: RewardSpec = DEFAULT_REWARD,
    ) -> None:
        self.table = table
        self.blocks = (blocks,) if isinstance(blocks, str) else tuple(blocks)
        self.reward = reward
        self.num_depths = table.num_depths
        self.query_ids = np.array(table.query_ids, dtype=object)
        self.action_space = spaces.Discrete(table.num_depths)

    def __reduce__(self) -> tuple[type["Bandit"], tuple[Any, ...]]:
        # Rebuilt from the table, so that copies keep the read-only arrays and their views.
        return Bandit, (self.table, self.blocks, self.reward)

    def __len__(self) -> int:
        return len(self.query_ids)

    @cached_property
    def observation_space(self) -> spaces.Box:
        """Box of one observation (O,)."""
        return self.table.observation_space(self.blocks)

    @cached_property
    def observations(self) -> NDArray[np.float32]:
        """Observations (N, O) in `observation_space`, read-only."""
        return _read_only(self.table.observation(self.blocks))

    @cached_property
    def rewards(self) -> NDArray[np.float32]:
        """Reward (N, D) of every query and depth."""
        return _read_only(self.reward.of(self.table))

    @cached_property
    def terms(self) -> dict[str, NDArray[np.float32]]:
        """`reward` and the three terms of the reward, (N, D) each, by name."""
        table = self.table
        columns = (table.entropy, table.focus, table.alignment(self.reward.alignment))
        return {"reward": self.rewards, **dict(zip(TERMS, columns, strict=True))}

    @cached_property
    def best(self) -> NDArray[np.float32]:
        """Reward (N,) of each query's best depth."""
        return np.asarray(self.rewards.max(axis=1))

    @cached_property
    def oracle(self) -> NDArray[np.int64]:
        """Each query's best depth (N,), of equal ones the smallest: it reads the answers."""
        return np.asarray(self.rewards.argmax(axis=1), np.int64)

    @cached_property
    def random(self) -> NDArray[np.float64]:
        """Expected reward (N,) of a depth drawn uniformly."""
        return np.asarray(self.rewards.astype(np.float64).mean(axis=1))

    def best_fixed(self) -> int:
        """The depth of largest mean reward, of equal ones the smallest.

        Choose it on training queries, for use on others.

        Raises:
            InputError: there is no query to choose on.
        """
        if not len(self):
            raise InputError("there is no query to choose a depth on; give training queries")
        return int(self.rewards.astype(np.float64).mean(axis=0).argmax())

    def chosen(self, depths: ArrayLike) -> NDArray[np.float64]:
        """Reward (N,) of one depth for each query, or of one for all; see `checked_actions`."""
        given = np.full(len(self), depths) if np.ndim(depths) == 0 else depths
        rows = self.checked_actions(given, len(self))
        return self.rewards[np.arange(len(self)), rows].astype(np.float64)

    def mean(self, depths: ArrayLike) -> float:
        """Mean reward of `chosen` depths."""
        return float(self.chosen(depths).mean())

    def summary(self, depths: ArrayLike, best_fixed_depth: int | None = None) -> RewardSummary:
        """What depths (N,) get, and what they are measured by; see `best_fixed` for the depth."""
        mean, random = self.mean(depths), float(self.rewards.astype(np.float64).mean())
        oracle = float(self.best.astype(np.float64).mean())
        fixed = None if best_fixed_depth is None else self.mean(best_fixed_depth)
        return RewardSummary(mean, random, fixed, oracle, gap_closed(mean, random, oracle))

    @cached_property
    def _outcomes(self) -> NDArray[np.float32]:
        """The numbers of every `Outcome` side by side, (N * D, 8) of which the last two are 0.

        A choice is one record of 32 bytes, so that it is read from one cache line or two.
        """
        columns = [*self.terms.values(), self.best[:, None] - self.rewards, self.random[:, None]]
        outcomes = np.zeros((*self.rewards.shape, 8), np.float32)
        for place, column in enumerate(columns):
            outcomes[..., place] = column
        return outcomes.reshape(-1, 8)

    def outcome(self, query: int, depth: Any) -> Outcome:
        """Outcome of one depth for one query, as floats.

        Raises:
            InputError: `depth` is no integer in [0, D), which a bool is not.
        """
        number = checked_int(depth, "action", 0, self.num_depths - 1)
        numbers = self._outcomes[query * self.num_depths + number].tolist()
        return Outcome(*numbers[:6])

    def outcome_of(self, queries: NDArray[np.int64], depths: Any) -> Outcome:
        """What depths (B,) bring for queries (B,): float64 arrays (B,); see `checked_actions`."""
        places = queries * self.num_depths
        places += self.checked_actions(depths, len(queries))
        records = self._outcomes.take(places, axis=0, mode="clip")
        # Whole records are converted, as columns one by one take longer.
        return Outcome(*records.astype(np.float64).T[:6])

    def checked_actions(self, actions: Any, count: int) -> NDArray[np.int64]:
        """`actions` as `count` numbers (count,) int64 in [0, D).

        Raises:
            InputError: another shape or type, or a number out of range.
        """
        given = np.asarray(actions)
        if given.shape != (count,) or given.dtype.kind not in "iu":
            raise InputError(
                f"actions must be {count} integers from 0 to {self.num_depths - 1};"
                f" got {shown(actions)} of shape {given.shape} and type {given.dtype}"
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

    def query_index(self, query_id: str) -> int:
        """Row of the query called `query_id`.

        Raises:
            InputError: there is none; the message names similar ones.
        """
        with suppress(KeyError, TypeError):  # unknown, or nothing that could be an id
            return self._rows[query_id]
        # Comparing with every id takes seconds where there are a million.
        known = self.query_ids[:20_000].tolist()
        close = difflib.get_close_matches(str(query_id), known, n=3) or known[:1]
        raise InputError(
            f"no query {shown(query_id)} among the {len(self)} of this environment; try"
            f" {' or '.join(map(repr, close))}"
        )

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {query_id: row for row, query_id in enumerate(self.query_ids)}


def _read_only(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A view: the flag must not reach an array that belongs to the table."""
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view
