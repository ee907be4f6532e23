"""What a comparison leaves behind: report.md, results.json, per_query.csv and joined run files."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.supervised import label_sentence
from maw_gym.files import written_whole
from runners.experiments import tables
from runners.experiments.analysis import COLUMNS, MAIN, NAMES, Results, duels_of, pairs_of
from runners.experiments.comparison_settings import CompareSettings
from runners.experiments.fields import Field, Reference
from runners.experiments.methods import METHODS
from runners.experiments.results import slug

FIGURES = {
    "reward_curves": "Mean reward of the greedy policy on validation queries while it trains; bands"
    " reach from the lowest to the highest seed.",
    "ndcg": "nDCG@10 on test queries with bootstrap 95% intervals over queries.",
    "depth_usage": "How often each depth is chosen for test queries.",
    "reward_terms": "The reward and its terms at every depth, means over test queries.",
    "differences": "Difference in nDCG@10 from the baseline, query by query, sorted.",
}


@dataclass(frozen=True)
class Outcome:
    """Everything known about one dataset.

    Attributes:
        field: the dataset.
        references: of every fold.
        results: of every method that could run.
        rows: see `analysis.rows_of`.
        skipped: why a method could not run, by name.
    """

    field: Field
    references: Sequence[Reference]
    results: Sequence[Results]
    rows: Sequence[Mapping[str, Any]]
    skipped: Mapping[str, str]

    @property
    def named(self) -> dict[str, Results]:
        """The results by method."""
        return {one.method: one for one in self.results}


def report_text(outcomes: Sequence[Outcome], settings: CompareSettings, command: str) -> str:
    """The whole of report.md."""
    seeds = " ".join(map(str, settings.learner_seeds))
    timesteps = settings.common("").timesteps
    parts = [
        "# Comparison",
        f"Made by `{command}`.",
        f"Learners saw {timesteps:,} training queries each, on the same queries, with"
        f" seeds {seeds}; scores are averaged over seeds, query by query, before they are tested."
        f" Encoders have seeds {' '.join(map(str, settings.seeds_of_encoders))}. Intervals in"
        " square brackets are bootstrap 95% intervals, over test queries and, where there are"
        " several, over encoders together. p: paired sign-flip test over test queries, 10,000"
        " draws; Holm's correction is over all methods of a dataset but the oracles, which read the"
        " answers and bound what any router could reach. `detectable` is the smallest true"
        " difference that would be found with power .8 at level .05, `within` the smallest margin"
        " below which two one-sided tests at .05 place the difference, both in shares of the"
        " baseline's mean. p speaks of other queries with these encoders; intervals and margins of"
        " other encoders too, as far as so few can tell. AP is over the first 100 documents.",
    ]
    if settings.quick:
        parts.append(
            "**A quick run**: one seed, fewer timesteps, no encoder trained but the MAW encoder."
            " Its numbers show that everything works; they are no result."
        )
    for outcome in outcomes:
        parts += _dataset(outcome, settings)
    return "\n\n".join(parts) + "\n"


def _dataset(outcome: Outcome, settings: CompareSettings) -> Iterator[str]:
    name, rows = outcome.field.dataset, outcome.rows
    ordinary = [row for row in rows if row["kind"] != "oracle"]
    oracles = [row for row in rows if row["kind"] == "oracle"]
    yield f"## {name}"
    yield "\n".join(f"- {note}" for note in _notes(outcome))
    yield "### Plain reading"
    yield "\n".join(f"- {sentence}" for sentence in reading(outcome, settings.tested_against))
    yield f"### nDCG@10 against {settings.tested_against}"
    yield tables.test_table(ordinary, settings.tested_against)
    yield "### Retrieval"
    yield tables.retrieval_table(ordinary)
    if oracles:
        yield "Upper bounds, which read the answers:"
        yield tables.retrieval_table(oracles)
    if any(row["reward"] for row in rows):
        yield "### Reward"
        yield tables.reward_table(rows)
    groups = [group for fold in outcome.references for group in fold.groups]
    if len(set(groups)) > 1:
        yield "### nDCG@10 by group"
        yield tables.group_table({one.method: one.scores(MAIN) for one in outcome.results}, groups)
        yield (
            "In brackets: test queries. Alike: the mean over groups, whatever their size. How large"
            " groups weigh in training is the setting `balance`."
        )
    duels = duels_of(outcome.named)
    if duels:
        yield "### GRPO against the other ways to choose a depth"
        yield tables.duel_table(*duels)
    pairs = pairs_of(outcome.named)
    if pairs:
        yield "### Pairs"
        yield tables.pair_table(pairs)
        yield "p is not corrected here."
    seeds = tables.seed_table(rows)
    if seeds:
        yield "### Seeds"
        yield seeds
    yield "### Cost"
    yield tables.cost_table(rows)
    yield (
        "Training is that of the method alone: of a router, without the encoder whose depths it"
        " chooses. Latency is the median over 40 queries, one at a time, of what the method takes"
        " longer than the MAW encoder's standard attention."
    )
    for figure, caption in FIGURES.items():
        path = f"figures/{slug(name)}-{figure}.png"
        yield f"![{caption}]({path})\n\n*{caption}*"


def _notes(outcome: Outcome) -> Iterator[str]:
    folds = outcome.references
    first = folds[0].facts
    counts = ", ".join(f"{count:,} {split}" for split, count in first["queries"].items())
    if len(folds) > 1:
        total = sum(len(fold.query_ids) for fold in folds)
        yield (
            f"All queries are cross-validated in {len(folds)} folds: results of all {total:,} test"
            f" queries pooled. Fold 0 has {counts} queries. Encoders and routers are trained in"
            " every fold anew."
        )
    else:
        yield f"Queries: {counts}."
    ranked = "all of them ranked for every query"
    if first["ranked"] != "whole":
        ranked = (
            "encoders rank BM25's first 100 of each query, to which only training queries have"
            " their relevant documents added"
        )
    yield f"{first['documents']:,} documents, {ranked}."
    relevant, seen = (
        sum(fold.facts[key] for fold in folds) for key in ("test_relevant", "test_relevant_seen")
    )
    yield (
        f"{seen:,} of {relevant:,} relevant test documents ({seen / max(relevant, 1):.1%}) were a"
        " relevant document of a query outside test too."
    )
    chosen = sorted({str(fold.encoder.get("chosen")) for fold in folds})
    yield f"MAW encoder: {', '.join(chosen)}; {first['depths']} depths."
    yield f"Observation: {', '.join(first['observation'])}; network: {first['network']}."
    for one in outcome.results:
        facts = one.cells[0][0].facts
        if "label_histogram" in facts:
            yield f"{one.method}: {label_sentence(facts)}."
        if "candidates" in facts:
            choices = [cell.facts["chosen"] for row in one.cells for cell in row]
            kept = choices.count("trained")
            yield f"{one.method}: kept in {kept} of {len(choices)} folds, else untrained."
    for name, reason in outcome.skipped.items():
        yield f"{name} was left out: {reason}."


def reading(outcome: Outcome, baseline: str) -> Iterator[str]:
    """What the numbers say, in sentences that can be checked against the tables."""
    rows = {row["method"]: row for row in outcome.rows}
    ordinary = {name: row for name, row in rows.items() if row["kind"] != "oracle"}

    def mean(name: str) -> float:
        value: float = rows[name]["retrieval"][MAIN]["mean"]
        return value

    best = max(ordinary, key=mean)
    yield (
        f"Highest {MAIN}: {best} with {mean(best):.4f}; the baseline {baseline} has"
        f" {mean(baseline):.4f}."
    )
    for word, sign in (("above", 1), ("below", -1)):
        names = [
            name
            for name, row in ordinary.items()
            if row["test"] and row["test"]["p_holm"] < 0.05 and sign * row["test"]["difference"] > 0
        ]
        yield f"Significantly {word} the baseline (Holm, .05): {', '.join(names) or 'none'}."
    for name in ("grpo", "full-ndcg", "full-ndcg-retrieval"):
        test = rows.get(name, {}).get("test")
        if test:
            margin = tables.share(test["equivalence_margin"], test["baseline_mean"])
            yield f"The difference of {name} from {baseline} is less than {margin} at 95%."
    duels = duels_of(outcome.named)
    if duels:
        reward, ndcg = duels
        for what, found in (("reward", reward), (MAIN, ndcg)):
            beaten: list[str] = []
            lost: list[str] = []
            level: list[str] = []
            for name, test in found.items():
                if METHODS[name].kind == "oracle":
                    continue
                certain = test["p_holm"] < 0.05
                (level if not certain else beaten if test["difference"] > 0 else lost).append(name)
            yield (
                f"GRPO in {what}: significantly above {', '.join(beaten) or 'none'}; below"
                f" {', '.join(lost) or 'none'}; no significant difference from"
                f" {', '.join(level) or 'none'}."
            )
    for name in ("grpo", "supervised-oracle", "supervised-rule"):
        if name in rows:
            relative = rows[name]["relative"]
            yield (
                f"{name} against NON-MAW: {tables.percent(relative['zero_shot'])} zero-shot,"
                f" {tables.percent(relative['trained'])} trained."
            )


def write_per_query(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Every score of every query, method and seed as CSV."""
    head = [
        "dataset",
        "fold",
        "query_id",
        "method",
        "encoder_seed",
        "seed",
        "depth",
        *COLUMNS,
        *NAMES,
    ]
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(head)
        for outcome in outcomes:
            ids = {fold.fold: fold.query_ids for fold in outcome.references}
            for cell in (c for one in outcome.results for row in one.cells for c in row):
                for at, query in enumerate(ids[cell.fold]):
                    terms = ["" if not cell.terms else cell.terms[name][at] for name in COLUMNS]
                    depth = "" if not cell.depths else cell.depths[at]
                    scores = [cell.measures[name][at] for name in NAMES]
                    start = [outcome.field.dataset, cell.fold, query, cell.method]
                    start += [cell.encoder_seed, cell.seed]
                    writer.writerow([*start, depth, *terms, *scores])


def join_runs(parts: Sequence[Path], whole: Path) -> None:
    """One TREC run file of those of all folds, whose queries differ."""
    with written_whole(whole) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
