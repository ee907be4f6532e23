"""From cells to rows: pooling over folds, averaging over seeds, intervals and tests.

Notation: N test queries of all folds, E encoders, S seeds of a method on each of them, D depths.
Seeds of encoders are crossed with queries in intervals and margins; those of a learner are averaged
first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maw_gym.envs.bandit import TERMS, gap_closed
from maw_gym.retrieval.evaluation import MEASURES
from maw_gym.retrieval.significance import (
    Interval,
    bootstrap_means,
    holm,
    interval,
    margin,
    sign_flip_tests,
    smallest_detectable_difference,
    wins_ties_losses,
)
from runners.experiments.fields import Reference
from runners.experiments.methods import METHODS
from runners.experiments.results import Result

MAIN: Final = "nDCG@10"
NAMES: Final = tuple(str(measure) for measure in MEASURES)
COLUMNS: Final = ("reward", *TERMS)
ORDINARY: Final = 0.95

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

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """All cells of one method on one dataset.

    Attributes:
        method: its name.
        seeds: S of them; one where the method has none.
        cells: per encoder and seed the cells of all folds, in the order of the folds.
        encoders: E.
    """

    method: str
    seeds: tuple[int, ...]
    cells: tuple[tuple[Result, ...], ...]
    encoders: int = 1

    def measure(self, name: str) -> Floats:
        """Values (E * S, N) of a retrieval measure."""
        return np.array(
            [np.concatenate([cell.measures[name] for cell in row]) for row in self.cells]
        )

    @cached_property
    def terms(self) -> dict[str, Floats] | None:
        """Reward and its terms (E * S, N); None where no depth is chosen."""
        if self.cells[0][0].terms is None:
            return None
        return {
            name: np.array(
                [np.concatenate([(cell.terms or {})[name] for cell in row]) for row in self.cells]
            )
            for name in COLUMNS
        }

    @cached_property
    def depths(self) -> NDArray[np.int64] | None:
        """Chosen depths (E * S, N)."""
        if self.cells[0][0].depths is None:
            return None
        return np.array([np.concatenate([cell.depths or [] for cell in r]) for r in self.cells])

    def by_encoder(self, name: str) -> Floats:
        """Values (E, N) of a measure or "reward", averaged over the seeds of the method."""
        terms = self.terms or {}
        values = terms[name] if name in terms else self.measure(name)
        mean: Floats = values.reshape(self.encoders, -1, values.shape[-1]).mean(axis=1)
        return mean

    def scores(self, name: str) -> Floats:
        """Values (N,) of a measure or "reward", averaged over encoders and seeds."""
        mean: Floats = self.by_encoder(name).mean(axis=0)
        return mean


def rows_of(
    dataset: str,
    results: Sequence[Results],
    references: Sequence[Reference],
    baseline: str,
    seed_intervals: bool,
) -> list[dict[str, Any]]:
    """One row of results.json for every method.

    Args:
        dataset: its name.
        results: of every method.
        references: of every encoder and fold.
        baseline: the method that the others are tested against.
        seed_intervals: add intervals over seeds.
    """
    named = {one.method: one for one in results}
    intervals = _intervals(results)
    rows = [
        _row(dataset, one, intervals[one.method], references, seed_intervals) for one in results
    ]
    tested = [n for n in named if n != baseline and METHODS[n].kind != "oracle"]
    tests = compared({name: named[name] for name in tested}, named[baseline], MAIN)
    for row in rows:
        row["test"] = tests.get(row["method"])
        means = {name: one.scores(MAIN).mean() for name, one in named.items()}
        row["relative"] = {
            key: _relative(means[row["method"]], means.get(name))
            for key, name in (("zero_shot", "non-maw-zero-shot"), ("trained", "non-maw-trained"))
        }
    return rows


def compared(
    tested: Mapping[str, Results], baseline: Results, score: str
) -> dict[str, dict[str, Any]]:
    """Paired tests over queries of every method against a baseline, with Holm's correction.

    Args:
        tested: by name; the family of the correction.
        baseline: what they are tested against.
        score: a retrieval measure, or "reward".
    """
    if not tested:
        return {}
    against = baseline.by_encoder(score)
    differences = np.array([one.by_encoder(score) - against for one in tested.values()])
    p_values = sign_flip_tests(differences.mean(axis=1))
    drawn = bootstrap_means(differences)
    found = {}
    for name, values, means, p, adjusted in zip(
        tested, differences, drawn, p_values, holm(p_values), strict=True
    ):
        low, high = interval(means, ORDINARY)
        found[name] = {
            "baseline": baseline.method,
            "score": score,
            "difference": float(values.mean()),
            "low": low,
            "high": high,
            "equivalence_margin": margin(means, ORDINARY),
            "baseline_mean": float(against.mean()),
            "p": p,
            "p_holm": adjusted,
            "smallest_detectable": smallest_detectable_difference(values),
            **wins_ties_losses(values.mean(axis=0))._asdict(),
        }
    return found


def _intervals(results: Sequence[Results]) -> dict[str, dict[str, Interval]]:
    """By method and measure, over the very same resamples."""
    drawn = bootstrap_means([one.by_encoder(name) for one in results for name in NAMES])
    found = iter([interval(means, ORDINARY) for means in drawn])
    return {one.method: {name: next(found) for name in NAMES} for one in results}


def duels_of(
    results: Mapping[str, Results],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]] | None:
    """GRPO minus every other method that chooses depths: in reward and in nDCG@10."""
    named = {name: one for name, one in results.items() if one.terms is not None}
    grpo = named.pop("grpo", None)
    if grpo is None or not named:
        return None
    found = []
    for score in ("reward", MAIN):
        tests = compared(named, grpo, score)
        found.append(
            {
                name: test
                | {"difference": -test["difference"], "low": -test["high"], "high": -test["low"]}
                | {"wins": test["losses"], "losses": test["wins"]}
                for name, test in tests.items()
            }
        )
    return found[0], found[1]


def pairs_of(
    results: Mapping[str, Results],
) -> dict[tuple[str, str], tuple[dict[str, Any] | None, dict[str, Any]]]:
    """Those of `PAIRS` that were run: tests of the reward, where both have one, and of nDCG@10."""
    found = {}
    for first, second in PAIRS:
        one, other = (results.get(name) for name in (first, second))
        if one is None or other is None:
            continue
        reward = None
        if one.terms is not None and other.terms is not None:
            reward = compared({first: one}, other, "reward")[first]
        found[first, second] = (reward, compared({first: one}, other, MAIN)[first])
    return found


def _row(
    dataset: str,
    one: Results,
    intervals: Mapping[str, Interval],
    references: Sequence[Reference],
    seed_intervals: bool,
) -> dict[str, Any]:
    cells = [cell for row in one.cells for cell in row]
    retrieval = {}
    for name in NAMES:
        scores, by_seed = one.scores(name), one.measure(name).mean(axis=1)
        retrieval[name] = {"mean": float(scores.mean()), **intervals[name]._asdict()}
        if len(by_seed) > 1:
            retrieval[name]["seed_deviation"] = float(by_seed.std(ddof=1))
            if seed_intervals:
                retrieval[name] |= dict(
                    zip(("seed_low", "seed_high"), t_interval(by_seed), strict=True)
                )
    seconds = [
        sum(cell.training_seconds for cell in row if cell.training_seconds is not None)
        for row in one.cells
    ]
    trained = any(cell.training_seconds is not None for cell in cells)
    latencies = [cell.latency_ms for cell in cells if cell.latency_ms is not None]
    return {
        "dataset": dataset,
        "method": one.method,
        "kind": METHODS[one.method].kind,
        "about": METHODS[one.method].about,
        "seeds": list(one.seeds) if METHODS[one.method].seeded else None,
        "params": cells[0].parameters,
        "training_seconds": float(np.mean(seconds)) if trained else None,
        "latency_ms": float(np.median(latencies)) if latencies else None,
        "reward": _reward(one, references),
        "retrieval": retrieval,
        "depths_used": None if one.depths is None else len(np.unique(one.depths)),
    }


def _reward(one: Results, references: Sequence[Reference]) -> dict[str, float | None] | None:
    if one.terms is None:
        return None
    known = {  # each encoder has depths, and so rewards, of its own
        name: float(np.concatenate([getattr(fold, name) for fold in references]).mean())
        for name in ("random", "best_fixed", "oracle")
    }
    mean = float(one.scores("reward").mean())
    return {
        "mean": mean,
        **{name: float(one.scores(name).mean()) for name in TERMS},
        **known,
        "gap_closed": gap_closed(mean, known["random"], known["oracle"]),
    }


def t_interval(values: Floats) -> tuple[float, float]:
    """Interval of 95% of the mean of S >= 2 values, by Student's t with S - 1 degrees."""
    half = stats.t.ppf((1 + ORDINARY) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def _relative(value: float, other: float | None) -> float | None:
    return None if not other else float(value / other - 1)
