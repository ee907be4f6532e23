"""A comparison as data: pooled over folds, averaged over seeds, with intervals and tests.

Notation: N test queries of all folds, E encoders, S seeds of a method on each of them, D depths.
Seeds of encoders are crossed with queries in intervals and margins; those of a learner are averaged
first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from maw_gym.envs.bandit import TERMS, Bandit, RewardSpec, gap_closed
from maw_gym.retrieval.evaluation import MEASURES
from maw_gym.retrieval.significance import (
    bootstrap_means,
    holm,
    interval,
    margin,
    sign_flip_tests,
    smallest_detectable_difference,
    wins_ties_losses,
)
from maw_gym.runners.experiments.methods import METHODS, Method
from maw_gym.runners.experiments.result import Floats, Result
from maw_gym.runners.experiments.settings import Spec
from maw_gym.tables.task import RetrievalTask

MAIN: Final = "nDCG@10"
NAMES: Final = tuple(str(measure) for measure in MEASURES)
COLUMNS: Final = ("reward", *TERMS)
LEVELS: Final = ("random", "best_fixed", "oracle")

# Does a router add to the rule that it is measured by, and does either to one depth trained alike?
PAIRS: Final = (
    ("full-ndcg", "best-fixed-ndcg"),
    ("full-ndcg-retrieval", "best-fixed-ndcg"),
    ("full-information", "observed-reward"),
    ("grpo", "best-fixed-reward"),
    ("grpo", "observed-reward"),
    ("grpo-retrieval", "grpo"),
    ("best-fixed-ndcg", "standard-attention"),
    ("maw-single", "standard-attention"),
)

Row = dict[str, Any]
Tests = dict[tuple[str, str], tuple[Row | None, Row]]


class Fold(NamedTuple):
    """One fold of a dataset with one encoder; `spec` makes the methods' specifications."""

    task: RetrievalTask
    spec: Spec
    encoder: str = ""  # part of file names, "" where there is one
    number: str = ""  # likewise, of the fold


def levels(task: RetrievalTask, reward: RewardSpec, split: str) -> dict[str, Floats]:
    """Rewards (N,) of a split's queries: of a random depth, the best fixed one and each's best."""
    train, bandit = (Bandit(task.table(name), reward=reward) for name in ("train", split))
    rewards = (bandit.random, bandit.chosen(train.best_fixed()), bandit.best.astype(np.float64))
    return dict(zip(LEVELS, rewards, strict=True))


def query_frame(result: Result, query_ids: Sequence[str], **about: Any) -> pd.DataFrame:
    """A result query by query, as per_query.csv has it."""
    depths = [pd.NA] * len(query_ids) if result.depths is None else result.depths
    none: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
    scores = {**(result.terms or none), **result.measures}
    frame = pd.DataFrame({**about, "depth": pd.array(depths, dtype="Int64"), **scores})
    frame.insert(2, "query_id", list(query_ids))
    return frame


@dataclass
class Comparison:
    """Every method's results on one dataset, and what follows from them.

    Folds, and the results of a method, are in the order of encoders, seeds, folds.
    """

    folds: Sequence[Fold]
    results: dict[str, list[Result]]
    baseline: str
    seeds: Sequence[int] = (0,)
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    skipped: dict[str, str] = field(default_factory=dict)
    seed_intervals: bool = False

    @property
    def dataset(self) -> str:
        """What all queries are from."""
        return self.folds[0].spec.task.dataset

    @cached_property
    def encoders(self) -> list[list[Fold]]:
        """All folds of each encoder: every test query once."""
        return [
            [*folds] for _, folds in groupby(self.folds, lambda one: one.spec.task.encoder_seed)
        ]

    @property
    def query_ids(self) -> list[str]:
        """Ids (N,) of all test queries, fold by fold."""
        splits = [fold.task.collection.splits["test"] for fold in self.encoders[0]]
        return [name for split in splits for name in split.ids]

    def has_depths(self, method: str) -> bool:
        """Whether the method chooses depths."""
        return self.results[method][0].depths is not None

    @cached_property
    def per_query(self) -> pd.DataFrame:
        """Every score of every query, method, encoder and seed: what per_query.csv has."""
        frames = []
        for name, results in self.results.items():
            seeds = self.seeds if self.methods[name].seeded else (0,)
            of = [(fold, seed) for some in self.encoders for seed in seeds for fold in some]
            for result, (fold, seed) in zip(results, of, strict=True):
                task, ids = fold.spec.task, fold.task.collection.splits["test"].ids
                about = {"dataset": self.dataset, "fold": task.fold, "method": name}
                about |= {"encoder_seed": task.encoder_seed, "seed": seed}
                frames.append(query_frame(result, ids, **about))
        return pd.concat(frames, ignore_index=True)

    def values(self, method: str, what: str) -> Floats:
        """Values (E * S, N) of a retrieval measure, "reward", one of its terms, or "depth"."""
        scores = self.per_query.loc[self.per_query["method"] == method, what]
        return np.asarray(scores).reshape(-1, len(self.query_ids))

    def by_encoder(self, method: str, what: str) -> Floats:
        """The same (E, N), averaged over the seeds of the method."""
        values = self.values(method, what)
        return np.asarray(values.reshape(len(self.encoders), -1, values.shape[-1]).mean(axis=1))

    def scores(self, method: str, what: str = MAIN) -> Floats:
        """The same (N,), averaged over encoders and seeds."""
        return np.asarray(self.by_encoder(method, what).mean(axis=0))

    def table(self) -> pd.DataFrame:
        """The rows as a table with a line for each method."""
        return pd.json_normalize(self.rows).set_index("method")

    @cached_property
    def rows(self) -> list[Row]:
        """One row of results.json for every method."""
        ordinary = [name for name in self.results if self.methods[name].kind != "oracle"]
        tested = [name for name in ordinary if name != self.baseline]
        tests = dict(zip(tested, self.compared([(n, self.baseline) for n in tested]), strict=True))
        # All methods' intervals are over the very same resamples.
        drawn = bootstrap_means([self.by_encoder(n, what) for n in self.results for what in NAMES])
        by_method = drawn.reshape(len(self.results), len(NAMES), -1)
        return [
            self._row(name, means) | {"test": tests.get(name)}
            for name, means in zip(self.results, by_method, strict=True)
        ]

    def _row(self, name: str, drawn: Floats) -> Row:
        method, results, depths = self.methods[name], self.results[name], self.has_depths(name)
        retrieval = {}
        for what, means in zip(NAMES, drawn, strict=True):
            by_seed = self.values(name, what).mean(axis=1)
            found = {"mean": float(self.scores(name, what).mean()), **interval(means)._asdict()}
            if len(by_seed) > 1:
                found["seed_deviation"] = float(by_seed.std(ddof=1))
                if self.seed_intervals:
                    half = stats.t.ppf(0.975, len(by_seed) - 1) * stats.sem(by_seed)
                    found["seed_low"] = float(by_seed.mean() - half)
                    found["seed_high"] = float(by_seed.mean() + half)
            retrieval[what] = found
        seconds = [one.training_seconds for one in results if one.training_seconds is not None]
        latencies = [one.latency_ms for one in results if one.latency_ms is not None]
        runs = len(results) / len(self.encoders[0])
        return {
            "dataset": self.dataset,
            "method": name,
            "kind": method.kind,
            "about": method.about,
            "seeds": list(self.seeds) if method.seeded else None,
            "params": results[0].parameters,
            "training_seconds": sum(seconds) / runs if seconds else None,  # of all folds together
            "latency_ms": float(np.median(latencies)) if latencies else None,
            "reward": self._reward(name) if depths else None,
            "retrieval": retrieval,
            "depths_used": len(np.unique(self.values(name, "depth"))) if depths else None,
            "relative": {
                "zero_shot": self._relative(name, "non-maw-zero-shot"),
                "trained": self._relative(name, "non-maw-trained"),
            },
        }

    @cached_property
    def _levels(self) -> dict[str, float]:
        # Each encoder has depths, and so rewards, of its own.
        found = [levels(fold.task, fold.spec.task.reward, "test") for fold in self.folds]
        return {name: float(np.concatenate([one[name] for one in found]).mean()) for name in LEVELS}

    def _reward(self, method: str) -> dict[str, float | None]:
        mean, *terms = (float(self.scores(method, name).mean()) for name in COLUMNS)
        closed = gap_closed(mean, self._levels["random"], self._levels["oracle"])
        named = dict(zip(TERMS, terms, strict=True))
        return {"mean": mean, **named, **self._levels, "gap_closed": closed}

    def _relative(self, method: str, other: str) -> float | None:
        mean = self.scores(other).mean() if other in self.results else 0
        return float(self.scores(method).mean() / mean - 1) if mean else None

    def compared(self, pairs: Sequence[tuple[str, str]], score: str = MAIN) -> list[Row]:
        """Paired tests over queries, first minus second, with Holm's correction over all pairs."""
        if not pairs:
            return []
        differences = np.array(
            [self.by_encoder(one, score) - self.by_encoder(other, score) for one, other in pairs]
        )
        p_values = sign_flip_tests(differences.mean(axis=1))
        adjusted, drawn = holm(p_values), bootstrap_means(differences)
        return [
            {
                "baseline": other,
                "score": score,
                "difference": float(differences[row].mean()),
                **interval(drawn[row])._asdict(),
                "equivalence_margin": margin(drawn[row]),
                "baseline_mean": float(self.by_encoder(other, score).mean()),
                "p": p_values[row],
                "p_holm": adjusted[row],
                "smallest_detectable": smallest_detectable_difference(differences[row]),
                **wins_ties_losses(differences[row].mean(axis=0))._asdict(),
            }
            for row, (_, other) in enumerate(pairs)
        ]

    @cached_property
    def duels(self) -> Tests:
        """GRPO and every other method that chooses depths, as `pairs`."""
        others = [name for name in self.results if name != "grpo" and self.has_depths(name)]
        return self._tested([("grpo", name) for name in others if "grpo" in self.results])

    @cached_property
    def pairs(self) -> Tests:
        """Those of `PAIRS` that were run: tests of reward, where both have one, and of nDCG@10."""
        return self._tested([pair for pair in PAIRS if {*pair} <= self.results.keys()])

    def _tested(self, pairs: Sequence[tuple[str, str]]) -> Tests:
        paid = [pair for pair in pairs if all(map(self.has_depths, pair))]
        rewards = dict(zip(paid, self.compared(paid, "reward"), strict=True))
        return {
            pair: (rewards.get(pair), ndcg)
            for pair, ndcg in zip(pairs, self.compared(pairs), strict=True)
        }
