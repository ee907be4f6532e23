"""A comparison as data: pooled over folds, averaged over seeds, with intervals and tests.

Notation: N test queries of all folds, E encoders, S seeds of a method on each of them, D depths.
Seeds of encoders are crossed with queries in intervals and margins; those of a learner are averaged
first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maw_gym.envs.bandit import TERMS, gap_closed
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
from runners.experiments.methods import METHODS, Floats, Method, Result

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


@dataclass
class Reference:
    """What the results on one fold with one encoder are seen against."""

    fold: int
    encoder_seed: int
    query_ids: Sequence[str]
    levels: dict[str, Floats]
    by_depth: dict[str, Floats] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    groups: Sequence[str] = ()


@dataclass
class Comparison:
    """Every method's results on one dataset, and what follows from them."""

    dataset: str
    baseline: str
    results: Mapping[str, Sequence[Result]]
    references: Sequence[Reference]
    encoders: int = 1
    seeds: Sequence[int] = (0,)
    skipped: Mapping[str, str] = field(default_factory=dict)
    seed_intervals: bool = False
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)

    @property
    def folds(self) -> Sequence[Reference]:
        """References of the first encoder: every test query once."""
        return self.references[: len(self.references) // self.encoders]

    @property
    def query_ids(self) -> list[str]:
        """Ids (N,) of all test queries, fold by fold."""
        return [name for fold in self.folds for name in fold.query_ids]

    def kind(self, method: str) -> str:
        """See `Method`."""
        return self.methods[method].kind

    def values(self, method: str, what: str) -> Floats:
        """Values (E * S, N) of a retrieval measure, "reward", one of its terms, or "depths"."""
        found = []
        for one in self.results[method]:
            columns = {**one.measures, **(one.terms or {}), "depths": one.depths}
            found.append(np.asarray(columns[what]))
        folds = len(self.folds)
        starts = range(0, len(found), folds)
        return np.array([np.concatenate(found[first : first + folds]) for first in starts])

    def by_encoder(self, method: str, what: str) -> Floats:
        """The same (E, N), averaged over the seeds of the method."""
        values = self.values(method, what)
        return np.asarray(values.reshape(self.encoders, -1, values.shape[-1]).mean(axis=1))

    def scores(self, method: str, what: str = MAIN) -> Floats:
        """The same (N,), averaged over encoders and seeds."""
        return np.asarray(self.by_encoder(method, what).mean(axis=0))

    def has_depths(self, method: str) -> bool:
        """Whether the method chooses depths."""
        return self.results[method][0].depths is not None

    @cached_property
    def rows(self) -> list[Row]:
        """One row of results.json for every method."""
        names = [name for name in self.results if name != self.baseline]
        tests = self.compared([n for n in names if self.kind(n) != "oracle"], self.baseline, MAIN)
        # All methods' intervals are over the very same resamples.
        drawn = bootstrap_means([self.by_encoder(n, what) for n in self.results for what in NAMES])
        intervals = iter([interval(means)._asdict() for means in drawn])
        means = {name: self.scores(name).mean() for name in self.results}
        rows = []
        for name in self.results:
            row = self._row(name, {what: next(intervals) for what in NAMES})
            row["test"] = tests.get(name)
            row["relative"] = {
                key: float(means[name] / means[other] - 1) if means.get(other) else None
                for key, other in (
                    ("zero_shot", "non-maw-zero-shot"),
                    ("trained", "non-maw-trained"),
                )
            }
            rows.append(row)
        return rows

    def _row(self, name: str, intervals: Mapping[str, dict[str, float]]) -> Row:
        method, results = self.methods[name], self.results[name]
        retrieval: dict[str, dict[str, float]] = {}
        for what in NAMES:
            by_seed = self.values(name, what).mean(axis=1)
            retrieval[what] = {"mean": float(self.scores(name, what).mean()), **intervals[what]}
            if len(by_seed) > 1:
                retrieval[what]["seed_deviation"] = float(by_seed.std(ddof=1))
                if self.seed_intervals:
                    low, high = t_interval(by_seed)
                    retrieval[what] |= {"seed_low": low, "seed_high": high}
        seconds = [one.training_seconds for one in results if one.training_seconds is not None]
        latencies = [one.latency_ms for one in results if one.latency_ms is not None]
        runs = len(results) / len(self.folds)
        return {
            "dataset": self.dataset,
            "method": name,
            "kind": method.kind,
            "about": method.about,
            "seeds": list(self.seeds) if method.seeded else None,
            "params": results[0].parameters,
            "training_seconds": sum(seconds) / runs if seconds else None,  # of all folds together
            "latency_ms": float(np.median(latencies)) if latencies else None,
            "reward": self._reward(name),
            "retrieval": retrieval,
            "depths_used": len(np.unique(self.values(name, "depths")))
            if self.has_depths(name)
            else None,
        }

    def _reward(self, method: str) -> dict[str, float | None] | None:
        if not self.has_depths(method):
            return None
        known = {  # each encoder has depths, and so rewards, of its own
            name: float(np.concatenate([fold.levels[name] for fold in self.references]).mean())
            for name in LEVELS
        }
        mean, *terms = (float(self.scores(method, name).mean()) for name in COLUMNS)
        return {
            "mean": mean,
            **dict(zip(TERMS, terms, strict=True)),
            **known,
            "gap_closed": gap_closed(mean, known["random"], known["oracle"]),
        }

    def compared(self, names: Iterable[str], baseline: str, score: str) -> dict[str, Row]:
        """Paired tests over queries of methods against a baseline, with Holm's correction."""
        names = list(names)
        if not names:
            return {}
        against = self.by_encoder(baseline, score)
        differences = np.array([self.by_encoder(name, score) - against for name in names])
        p_values = sign_flip_tests(differences.mean(axis=1))
        adjusted, drawn = holm(p_values), bootstrap_means(differences)
        return {
            name: {
                "baseline": baseline,
                "score": score,
                "difference": float(differences[row].mean()),
                **interval(drawn[row])._asdict(),
                "equivalence_margin": margin(drawn[row]),
                "baseline_mean": float(against.mean()),
                "p": p_values[row],
                "p_holm": adjusted[row],
                "smallest_detectable": smallest_detectable_difference(differences[row]),
                **wins_ties_losses(differences[row].mean(axis=0))._asdict(),
            }
            for row, name in enumerate(names)
        }

    @cached_property
    def duels(self) -> tuple[dict[str, Row], dict[str, Row]] | None:
        """GRPO minus every other method that chooses depths: in reward and in nDCG@10."""
        others = [name for name in self.results if name != "grpo" and self.has_depths(name)]
        if "grpo" not in self.results or not others:
            return None
        reward, ndcg = (self.compared(others, "grpo", score) for score in ("reward", MAIN))
        for test in (*reward.values(), *ndcg.values()):
            test["difference"] = -test["difference"]
            test["low"], test["high"] = -test["high"], -test["low"]
            test["wins"], test["losses"] = test["losses"], test["wins"]
        return reward, ndcg

    @cached_property
    def pairs(self) -> dict[tuple[str, str], tuple[Row | None, Row]]:
        """Those of `PAIRS` that were run: tests of reward, where both have one, and of nDCG@10."""
        found = {}
        for first, second in PAIRS:
            if first in self.results and second in self.results:
                reward = None
                if self.has_depths(first) and self.has_depths(second):
                    reward = self.compared([first], second, "reward")[first]
                found[first, second] = reward, self.compared([first], second, MAIN)[first]
        return found


def t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of 95% of the mean of S >= 2 values, by Student's t with S - 1 degrees."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)
