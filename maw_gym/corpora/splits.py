"""How queries are divided into the splits `encoder`, `train`, `validation` and `test`.

A side is decided by the hash of a query's normalised text, so equal texts are never parted, and
a side does not depend on the order of the source.
"""

import hashlib
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maw_gym.corpora.collection import NO_QUERIES, QuerySet
from maw_gym.corpora.text import comparable, normalised
from maw_gym.errors import InputError, shown

SPLITS: Final = ("encoder", "train", "validation", "test")
# Upper ends of the sides where one hash decides among all four: 60%, 20%, 5% and 15%.
ENDS: Final = {"encoder": 0.60, "train": 0.80, "validation": 0.85, "test": 1.0}
FOLDS: Final = 5
# With fewer queries outside test, none is spent on training an encoder.
ENCODER_MINIMUM: Final = 500


def fraction(text: str) -> float:
    """A number in [0, 1) from the sha256 of `text`: the first 48 bits, exact in a double."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def side(position: float) -> str:
    """The split of a position in [0, 1) among all four."""
    return next(split for split, end in ENDS.items() if position < end)


def pooled(parts: Mapping[str, QuerySet]) -> QuerySet:
    """The queries of all parts, a query of several parts once, with all its judgments."""
    texts: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    for part in parts.values():
        for query_id, text, grades in zip(*part, strict=True):
            if texts.setdefault(query_id, text) != text:
                raise InputError(
                    f"query id {query_id!r} stands for different texts in the collection's subsets,"
                    " so that they cannot be cut into folds together; leave folds out"
                )
            relevance.setdefault(query_id, {}).update(grades)
    return QuerySet(tuple(texts), tuple(texts.values()), tuple(relevance.values()))


def divide(
    parts: Mapping[str, QuerySet],
    fold: int,
    folds: int | None = None,
    twins: Mapping[str, str] | None = None,
) -> tuple[dict[str, QuerySet], dict[str, Any]]:
    """Divide the queries of a source into the four splits; and how it was done, as JSON values."""
    parts, recurring = _without_recurring(parts)
    notes: dict[str, Any] = {
        "parts": {part: len(queries.ids) for part, queries in parts.items()},
        "dropped_recurring_texts": recurring,
    }
    splits = dict.fromkeys(SPLITS, NO_QUERIES)
    if "encoder" in parts:
        return splits | parts, {**notes, "made": "the collection's own subsets"}
    if set(parts) == {"test"}:
        return splits | parts, {**notes, "made": "for evaluation only: all queries are test"}
    if len(parts) == 1:
        (queries,) = parts.values()
        texts = _deciding(queries, twins)
        order = sorted(set(texts), key=lambda text: (fraction(text), text))
        fold_of = {text: place % (folds or FOLDS) for place, text in enumerate(order)}
        rows = range(len(texts))
        splits["test"] = queries.select(row for row in rows if fold_of[texts[row]] == fold)
        rest = queries.select(row for row in rows if fold_of[texts[row]] != fold)
        notes |= {"made": f"fold {fold} of {folds or FOLDS} is test", "fold": fold}
        if folds is not None:
            notes["folds"] = folds
    elif "test" not in parts:
        splits["test"], rest = parts["validation"], parts["train"]
        notes["made"] = "the collection has no judged test subset: its validation subset is test"
    else:
        splits["test"] = parts["test"]
        if "train" in parts:
            splits["validation"] = parts.get("validation", NO_QUERIES)
        rest = parts["train" if "train" in parts else "validation"]
        notes["made"] = "the collection's own test subset"
    notes["outside_test"] = len(rest.ids) + len(splits["validation"].ids)
    positions = [fraction(text) for text in _deciding(rest, twins)]
    starts: dict[str, float] = {"train": 0}
    if notes["outside_test"] >= ENCODER_MINIMUM:
        whole = ENDS["train"] if splits["validation"].ids else ENDS["validation"]
        starts = {"encoder": 0, "train": ENDS["encoder"] / whole}
        if not splits["validation"].ids:
            starts["validation"] = ENDS["train"] / whole
    elif not splits["validation"].ids and len(distinct := sorted(set(positions))) > 1:
        starts["validation"] = distinct[-max(1, round(len(distinct) / 10))]
    names, ends = list(starts), list(starts.values())[1:]
    chosen = [names[bisect(ends, position)] for position in positions]
    for name in set(chosen):
        splits[name] = rest.select(row for row, split in enumerate(chosen) if split == name)
    return splits, notes


def _deciding(queries: QuerySet, twins: Mapping[str, str] | None) -> list[str]:
    """The text of each query whose hash decides: its own, normalised, or what twins share."""
    if twins is None:
        return [normalised(text) or comparable(text) for text in queries.texts]
    return [twins[query_id] for query_id in queries.ids]


def _without_recurring(parts: Mapping[str, QuerySet]) -> tuple[dict[str, QuerySet], int]:
    """Drop texts that a part nearer to test has too; the number of queries dropped."""
    seen: set[str] = set()
    kept: dict[str, QuerySet] = {}
    dropped = 0
    for part in reversed([*SPLITS, "all"]):
        if part in parts:
            texts = [comparable(text) for text in parts[part].texts]
            rows = [row for row, text in enumerate(texts) if text not in seen]
            dropped += len(texts) - len(rows)
            seen.update(texts)
            kept[part] = parts[part].select(rows)
    return {part: queries for part, queries in kept.items() if queries.ids}, dropped


def check_balance(balance: float) -> float:
    """`balance` as a float in [0, 1]."""
    number = isinstance(balance, (int, float)) and not isinstance(balance, bool)
    if not number or not 0 <= balance <= 1:
        raise InputError(
            "balance must be a number from 0 (groups equally likely) to 1 (as they are), got"
            f" {shown(balance)}"
        )
    return float(balance)


def balanced_shares(groups: Sequence[str], balance: float) -> NDArray[np.float64]:
    """How likely each of N members is drawn: a group by its size to the power of `balance`."""
    sizes, power = Counter(groups), check_balance(balance) - 1
    weights = np.array([sizes[group] ** power for group in groups])
    return np.asarray(weights / weights.sum(), np.float64)
