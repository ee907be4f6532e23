"""Which queries an environment shows: a split seen as a bandit, and the order they come in."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from maw_gym.corpora.splits import SPLITS, balanced_shares, check_balance
from maw_gym.envs.bandit import DEFAULT_WEIGHTS, Bandit, RewardSpec
from maw_gym.errors import InputError, one_of, shown
from maw_gym.tables.depth_table import DepthTable, checked_blocks
from maw_gym.tables.task import RetrievalTask, load_task

log = logging.getLogger(__name__)

QUERY_ORDERS: Final = ("random", "sequential")


class QueryOrder:
    """The order in which `size` queries come; a sequential one goes on from `position`."""

    def __init__(self, kind: str, size: int, shares: NDArray[np.float64] | None = None) -> None:
        self.kind = kind
        self.size = size
        self.position = 0
        self._ends = None if shares is None else shares.cumsum() / shares.sum()

    def take(
        self, count: int, generator: np.random.Generator, group_size: int = 1
    ) -> NDArray[np.int64]:
        """The next queries (count,), each for so many neighbours."""
        count //= group_size
        if self.kind == "sequential":
            queries = (self.position + np.arange(count)) % self.size
            self.position = (self.position + count) % self.size
        elif self._ends is not None:
            queries = np.searchsorted(self._ends[:-1], generator.random(count), side="right")
        else:
            # Half the time of generator.integers, and 2^53 is far above any number of queries; a
            # product of a double below 1 and an integer rounds to below that integer.
            drawn = generator.random(count)
            drawn *= self.size
            queries = drawn.astype(np.int64)
        return queries if group_size == 1 else queries.repeat(group_size)


# Environments of equal settings share their arrays.
_bandits: WeakValueDictionary[tuple[Any, ...], Bandit] = WeakValueDictionary()


def load_bandit(
    *,
    dataset: str = "pydocs",
    encoder: str = "untrained",
    split: str = "train",
    observation: Sequence[str] | str = "attention",
    alignment: str = "ndcg",
    reward_weights: Sequence[float] = DEFAULT_WEIGHTS,
    query_order: str = "random",
    balance: float = 1.0,
    device: str = "auto",
    text_encoder: str = "wordllama",
    table: DepthTable | None = None,
) -> tuple[Bandit, QueryOrder, Callable[[], RetrievalTask] | None]:
    """Check the settings of an environment, see `GRPOEnvironment`, then load what it reads."""
    blocks = checked_blocks(observation)
    reward = RewardSpec(reward_weights, alignment)
    one_of("query_order", query_order, QUERY_ORDERS)
    one_of("split", split, SPLITS)
    if check_balance(balance) != 1 and query_order != "random":
        raise InputError(
            f"balance {balance} is for random draws, and query_order is {query_order!r}; leave one"
            " of them out"
        )
    load = None
    if table is None:
        load = partial(load_task, dataset, encoder, device, text_encoder=text_encoder)
        task = load()
        counts = {name: len(task.collection.splits[name].ids) for name in SPLITS}
        if not counts[split]:
            there = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"split {split!r} of {dataset!r} has no query; there are: {there}")
        if not (path := task.table_path(split)).exists():
            # A warning, since others are shown by nobody.
            log.warning(
                "computing the depth table of %s: %d %s queries, %d documents; once, kept in %s",
                *(task.collection.name, counts[split], split),
                *(len(task.collection.doc_ids), path.parent),
            )
        table = task.table(split)
    if not isinstance(table, DepthTable):
        raise InputError(f"table must be a DepthTable, not {shown(table)}")
    if len(table) == 0:
        raise InputError("the depth table has no query; give one with at least one row")
    shares = None
    if balance != 1:
        if not any(table.groups):
            raise InputError(
                f"balance {balance} needs queries in groups, and these have none; leave it at 1"
            )
        shares = balanced_shares(table.groups, balance)
    key = (id(table), blocks, reward)
    bandit = _bandits.get(key) or _bandits.setdefault(key, Bandit(table, blocks, reward))
    return bandit, QueryOrder(query_order, len(bandit), shares), load


def checked_options(options: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """The options of a reset; None are none."""
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"the options of a reset are a dictionary, not {shown(options)}")
    for name in options or {}:
        if name not in known:
            raise InputError(f"unknown reset option {name!r}; there is {' and '.join(known)}")
    return options or {}
