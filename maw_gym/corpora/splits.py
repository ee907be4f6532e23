"""How queries are divided into the splits `encoder`, `train`, `validation` and `test`.

A side is decided by the hash of a query's normalised text, so equal texts are never parted, and
a side does not depend on the order of the source.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maw_gym.corpora.collection import NO_QUERIES, QuerySet
from maw_gym.corpora.text import comparable, words
from maw_gym.errors import InputError, shown

SPLITS: Final = ("encoder", "train", "validation", "test")
# Upper ends of the sides where one hash decides among all four: 60%, 20%, 5% and 15%.
ENDS: Final = {"encoder": 0.60, "train": 0.80, "validation": 0.85, "test": 1.0}
FOLDS: Final = 5
# With fewer queries outside test, none is spent on training an encoder.
ENCODER_MINIMUM: Final = 500


def normalised(text: str) -> str:
    """`words` with single spaces between them; punctuation is left out."""
    return " ".join(words(text))


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
    """Divide the queries of a source into the four splits."""
    parts, recurring = _without_recurring(parts)
    notes: dict[str, Any] = {"parts": {part: len(parts[part].ids) for part in parts}}
    splits = dict.fromkeys(SPLITS, NO_QUERIES)
    if "encoder" in parts:
        splits.update(parts)
        notes["made"] = "the collection's own subsets"
    elif set(parts) == {"test"}:
        splits.update(parts)
        notes["made"] = "for evaluation only: all queries are test"
    else:
        outside, own_validation = _test_first(parts, fold, folds, twins, splits, notes)
        count = len(outside.ids) + len(own_validation.ids)
        positions = [fraction(text) for text in _deciding(outside, twins)]
        ends = {split: ENDS[split] / ENDS["validation"] for split in SPLITS[:3]}
        if own_validation.ids:
            splits["validation"] = own_validation
            ends = {"encoder": ENDS["encoder"] / ENDS["train"], "train": 1.0}
        if count < ENCODER_MINIMUM:
            ends = {"train": 1.0 if own_validation.ids else _last_tenth(positions), "validation": 1}
        for split, (start, end) in _intervals(ends).items():
            rows = [row for row, at in enumerate(positions) if start <= at < end]
            if rows:
                splits[split] = outside.select(rows)
        notes["outside_test"] = count
    notes["dropped_recurring_texts"] = recurring
    return splits, notes


def _deciding(queries: QuerySet, twins: Mapping[str, str] | None) -> list[str]:
    """The text of each query whose hash decides: its own, normalised, or what twins share."""
    if twins is None:
        return [normalised(text) or comparable(text) for text in queries.texts]
    return [twins[query_id] for query_id in queries.ids]


def _test_first(
    parts: Mapping[str, QuerySet],
    fold: int,
    folds: int | None,
    twins: Mapping[str, str] | None,
    splits: dict[str, QuerySet],
    notes: dict[str, Any],
) -> tuple[QuerySet, QuerySet]:
    """Fill ``splits["test"]``; the queries left to divide, and the source's own validation."""
    if len(parts) == 1:
        (queries,) = parts.values()
        texts = _deciding(queries, twins)
        order = sorted(set(texts), key=lambda text: (fraction(text), text))
        fold_of = {text: place % (folds or FOLDS) for place, text in enumerate(order)}
        rows = range(len(texts))
        splits["test"] = queries.select(row for row in rows if fold_of[texts[row]] == fold)
        notes["made"] = f"fold {fold} of {folds or FOLDS} is test"
        notes["fold"] = fold
        if folds is not None:
            notes["folds"] = folds
        return queries.select(row for row in rows if fold_of[texts[row]] != fold), NO_QUERIES
    validation = parts.get("validation", NO_QUERIES)
    if "test" not in parts:
        splits["test"] = validation
        notes["made"] = "the collection has no judged test subset: its validation subset is test"
        return parts["train"], NO_QUERIES
    splits["test"] = parts["test"]
    notes["made"] = "the collection's own test subset"
    if "train" not in parts:
        return validation, NO_QUERIES
    return parts["train"], validation


def _last_tenth(positions: Iterable[float]) -> float:
    """Where the last tenth of the distinct positions begins; at least one, unless there is one."""
    distinct = sorted(set(positions))
    if len(distinct) < 2:
        return 1.0
    return distinct[-max(1, round(len(distinct) / 10))]


def _intervals(ends: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    starts = [0.0, *ends.values()]
    return {split: (start, ends[split]) for split, start in zip(ends, starts, strict=False)}


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
    if not number or not math.isfinite(balance) or not 0 <= balance <= 1:
        raise InputError(
            "balance must be a number from 0 (groups equally likely) to 1 (as they are), got"
            f" {shown(balance)}"
        )
    return float(balance)


def balanced_shares(groups: Sequence[str], balance: float) -> NDArray[np.float64]:
    """How likely each of N members is drawn, so that groups are as likely as their size **
    balance.
    """
    sizes = Counter(groups)
    weights = np.array([sizes[group] ** (check_balance(balance) - 1) for group in groups])
    return np.asarray(weights / weights.sum(), np.float64)
