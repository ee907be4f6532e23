"""What a comparison leaves: report.md, results.json, per_query.csv and figures."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from maw_gym.agents.supervised import label_sentence
from maw_gym.corpora.collection import QuerySet
from maw_gym.files import write_json, written_whole
from maw_gym.run import CONFIG
from maw_gym.runners.experiments import figures
from maw_gym.runners.experiments.analysis import COLUMNS, MAIN, NAMES, Comparison, Row, Tests
from maw_gym.runners.experiments.comparison import slug
from maw_gym.runners.experiments.report import digits_for, markdown, number, p_value, write_csv
from maw_gym.runners.experiments.result import Floats
from maw_gym.tables.depth_table import is_shared

# Columns of the tables that have a line for each method; see `_cells`.
TESTED: Final = ("difference", "p", "p (Holm)", "detectable", "within", "wins / ties / losses")
DIFFERENCE: Final = ("method", MAIN, *TESTED, "vs zero-shot", "vs trained")
RETRIEVAL: Final = ("method", *(f"{name} [95%]" for name in NAMES))
REWARD: Final = ("method", *COLUMNS, "gap closed", "depths used")
COST: Final = ("method", "what it is", "parameters", "training s", "added ms per query")
SEEDS: Final = ("seeds", "deviation over seeds", "95% over seeds")


def method_table(
    made: Comparison, columns: Sequence[str], rows: Iterable[Row] | None = None, left: int = 1
) -> str:
    """Some columns of the methods' rows, of all unless some are given."""
    digits = digits_for(len(made.query_ids))
    cells = [_cells(row, digits) for row in (made.rows if rows is None else rows)]
    # Such as "95% over seeds" where it was not asked for.
    columns = [name for name in columns if any(line[name] != "-" for line in cells)]
    head = [name.replace("difference", f"minus {made.baseline}") for name in columns]
    return markdown(head, [[line[name] for name in columns] for line in cells], left)


def _cells(row: Row, digits: int) -> dict[str, str]:
    """What a method's row says, by the titles of columns."""
    reward = {"reward": (row["reward"] or {}).get("mean"), **(row["reward"] or {})}
    retrieval, low = row["retrieval"], min(digits, 3)
    over_seeds = "[{seed_low:.4f}, {seed_high:.4f}]" if "seed_low" in retrieval[MAIN] else "-"
    return {
        "method": row["method"],
        MAIN: number(retrieval[MAIN]["mean"], digits),
        **_tested(row["test"], digits),
        "vs zero-shot": percent(row["relative"]["zero_shot"]),
        "vs trained": percent(row["relative"]["trained"]),
        **{
            f"{name} [95%]": f"{number(one['mean'], digits)}"
            f" [{number(one['low'], low)}, {number(one['high'], low)}]"
            for name, one in retrieval.items()
        },
        **{name: number(reward.get(name), digits) for name in COLUMNS},
        "gap closed": number(reward.get("gap_closed"), low),
        "depths used": str(row["depths_used"]),
        "deviation over seeds": number(retrieval[MAIN].get("seed_deviation")),
        "95% over seeds": over_seeds.format(**retrieval[MAIN]),
        "what it is": row["about"],
        "parameters": "-" if row["params"] is None else f"{row['params']:,}",
        "training s": number(row["training_seconds"], 1),
        "added ms per query": number(row["latency_ms"], 2, sign=True),
        "seeds": str(len(row["seeds"])) if row["seeds"] else "-",
    }


def _tested(test: Row | None, digits: int, of_percent: int = 1) -> dict[str, str]:
    """What a test says: the difference with its interval, and the columns after it."""
    if test is None:
        return dict.fromkeys(TESTED, "-")
    mean, low, high = (number(test[n], digits, sign=True) for n in ("difference", "low", "high"))
    whole, sizes = test["baseline_mean"], (test["smallest_detectable"], test["equivalence_margin"])
    # Plus 0, as there is a -0.
    shares = (percent(size / whole + 0 if whole else None, of_percent, False) for size in sizes)
    return {
        "difference": f"{mean} [{low}, {high}]",
        "p": p_value(test["p"]),
        "p (Holm)": p_value(test["p_holm"]),
        **dict(zip(("detectable", "within"), shares, strict=True)),
        "wins / ties / losses": f"{test['wins']} / {test['ties']} / {test['losses']}",
    }


def percent(value: float | None, digits: int = 1, sign: bool = True) -> str:
    """A share; a dash where there is none."""
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}.{digits}f}%"


def group_table(scores: Mapping[str, Floats], groups: Sequence[str]) -> str:
    """Mean nDCG@10 of every method on the queries of each group, and with all groups alike."""
    means = pd.DataFrame(scores).groupby(np.asarray(groups)).mean()
    titles = [f"{name or 'none'} ({size})" for name, size in sorted(Counter(groups).items())]
    lines = [
        [str(name), *map(number, values), number(values.mean())] for name, values in means.items()
    ]
    return markdown(["method", *titles, "alike"], lines)


def pair_table(tests: Tests, columns: Sequence[str]) -> str:
    """Pairs of methods, the first minus the second: reward and its p, nDCG@10 and more columns."""
    lines = []
    for (first, second), (reward, ndcg) in tests.items():
        paid, told = _tested(reward, 5), _tested(ndcg, 5, of_percent=2)
        cells = [paid["difference"], paid[columns[0]], told["difference"]]
        lines.append([f"{first} minus {second}", *cells, *(told[one] for one in columns)])
    return markdown(["", "reward", columns[0], MAIN, *columns], lines)


# --- report.md -------------------------------------------------------------------------------


def write_comparisons(
    made: Sequence[Comparison], folder: Path, command: str, quick: bool = False
) -> None:
    """Write results.json, per_query.csv, the figures and, last, report.md."""
    again = f"maw-gym {command} --config {shlex.quote(str(folder / CONFIG))}"
    write_json(folder / "results.json", [row for one in made for row in one.rows])
    write_csv(folder / "per_query.csv", pd.concat([one.per_query for one in made]))
    for one in made:
        figures.draw_comparison(one, folder / "figures", slug(one.dataset))
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(report_text(made, again, quick), encoding="utf-8")


def report_text(made: Sequence[Comparison], again: str, quick: bool = False) -> str:
    """The whole of report.md."""
    first, online = made[0], made[0].folds[0].spec.online
    assert online is not None
    encoder_seeds = [folds[0].spec.task.encoder_seed for folds in first.encoders]
    parts = [
        "# Comparison",
        f"`{again}` runs it again.",
        f"Learners saw {online.timesteps:,} training queries each, on the"
        f" same queries, with seeds {' '.join(map(str, first.seeds))}; scores are averaged over"
        " seeds, query by query, before they are tested."
        f" Encoders have seeds {' '.join(map(str, encoder_seeds))}. Intervals in"
        " square brackets are bootstrap 95% intervals, over test queries and, where there are"
        " several, over encoders together. p: paired sign-flip test over test queries, 10,000"
        " draws; Holm's correction is over all methods of a dataset but the oracles, which read the"
        " answers and bound what any router could reach. `detectable` is the smallest true"
        " difference that would be found with power .8 at level .05, `within` the smallest margin"
        " below which two one-sided tests at .05 place the difference, both in shares of the"
        " baseline's mean. p speaks of other queries with these encoders; intervals and margins of"
        " other encoders too, as far as so few can tell. AP is over the first 100 documents.",
    ]
    if quick:
        parts.append(
            "**A quick run**: one seed, fewer methods and timesteps, no encoder trained but the MAW"
            " encoder."
            " Its numbers show that everything works; they are no result. The TREC runs have the"
            " first 10 documents of each query."
        )
    for one in made:
        parts += _sections(one)
    return "\n\n".join(parts) + "\n"


def _sections(made: Comparison) -> Iterator[str]:
    ordinary = [row for row in made.rows if row["kind"] != "oracle"]
    yield f"## {made.dataset}"
    yield "\n".join(f"- {note}" for note in _notes(made))
    yield "### Plain reading"
    yield "\n".join(f"- {sentence}" for sentence in reading(made))
    yield f"### nDCG@10 against {made.baseline}"
    yield method_table(made, DIFFERENCE, ordinary)
    yield "### Retrieval"
    yield method_table(made, RETRIEVAL)
    if routed := [row for row in made.rows if row["reward"]]:
        yield "### Reward"
        yield method_table(made, REWARD, routed)
    groups = [group for fold in made.encoders[0] for group in fold.task.table("test").groups]
    if len(set(groups)) > 1:
        yield "### nDCG@10 by group"
        yield group_table({name: made.scores(name) for name in made.results}, groups)
        yield (
            "Queries of each group, such as a package of pydocs; `alike` is the mean over groups,"
            " each counting the same, where the other tables' is the mean over queries. How much"
            " groups weigh in training is the setting `balance`."
        )
    if made.duels:
        yield "### GRPO against the other ways to choose a depth"
        yield pair_table(made.duels, ("p (Holm)", "wins / ties / losses"))
    if made.pairs:
        yield "### Pairs"
        yield pair_table(made.pairs, ("p", "detectable", "within"))
        yield "p is not corrected here."
    yield "### Cost and seeds"
    yield method_table(made, (*COST, *SEEDS), left=2)
    yield (
        "Training is that of the method alone: of a router, without the encoder whose depths it"
        " chooses. Latency is the median over 20 queries, one at a time, of what the method takes"
        " longer than the MAW encoder's standard attention. Deviations and intervals over seeds are"
        " those of nDCG@10."
    )
    for figure, (_, caption) in figures.FIGURES.items():
        yield f"![{caption}](figures/{slug(made.dataset)}-{figure}.png)\n\n*{caption}*"


def _notes(made: Comparison) -> Iterator[str]:
    folds, task, spec = made.encoders[0], made.folds[0].task, made.folds[0].spec.task
    splits = task.collection.splits
    counts = ", ".join(f"{len(queries.ids):,} {split}" for split, queries in splits.items())
    if len(folds) > 1:
        yield (
            f"All queries are cross-validated in {len(folds)} folds: results of all"
            f" {len(made.query_ids):,} test queries pooled. Fold 0 has {counts} queries. Encoders"
            " and routers are trained in every fold anew."
        )
    else:
        yield f"Queries: {counts}."
    ranked = "all of them ranked for every query"
    if not task.collection.small:
        ranked = (
            "encoders rank BM25's first 100 of each query, to which only training queries have"
            " their relevant documents added"
        )
    yield f"{len(task.collection.doc_ids):,} documents, {ranked}."
    total, seen = np.sum([_seen(fold.task.collection.splits) for fold in folds], axis=0)
    yield (
        f"{seen:,} of {total:,} relevant test documents ({seen / max(total, 1):.1%}) were a"
        " relevant document of a query outside test too."
    )
    chosen = sorted({str(fold.task.encoder_provenance.get("chosen")) for fold in folds})
    yield f"MAW encoder: {', '.join(chosen)}; {task.embedder.maw.depths} depths."
    network = "shared" if is_shared(spec.network, spec.observation) else "mlp"
    yield f"Observation: {', '.join(spec.observation)}; network: {network}."
    for name, results in made.results.items():
        facts = results[0].facts
        if "label_histogram" in facts:
            yield f"{name}: {label_sentence(facts)}."
        if "candidates" in facts:
            choices = [one.facts["chosen"] for one in results]
            kept = choices.count("trained")
            yield f"{name}: kept in {kept} of {len(choices)} folds, else untrained."
    for name, reason in made.skipped.items():
        yield f"{name} was left out: {reason}."


def _seen(splits: Mapping[str, QuerySet]) -> tuple[int, int]:
    """How many relevant documents test queries have, and how many of them others have too."""
    test, *others = (
        {doc for judged in splits[name].relevance for doc, grade in judged.items() if grade > 0}
        for name in ("test", "encoder", "train", "validation")
    )
    return len(test), len(test.intersection(set().union(*others)))


def reading(made: Comparison) -> Iterator[str]:
    """What the numbers say, in sentences that can be checked against the tables."""
    rows, digits = {row["method"]: row for row in made.rows}, digits_for(len(made.query_ids))
    ordinary = {name: row for name, row in rows.items() if row["kind"] != "oracle"}
    means = {name: row["retrieval"][MAIN]["mean"] for name, row in ordinary.items()}
    best = max(means, key=means.__getitem__)
    yield (
        f"Highest {MAIN}: {best} with {number(means[best], digits)}; the baseline {made.baseline}"
        f" has {number(means[made.baseline], digits)}."
    )
    above, below, _ = _sorted_tests({n: row["test"] for n, row in ordinary.items() if row["test"]})
    yield f"Significantly above the baseline (Holm, .05): {above}."
    yield f"Significantly below the baseline (Holm, .05): {below}."
    for name in ("grpo", "full-ndcg", "full-ndcg-retrieval"):
        if test := rows.get(name, {}).get("test"):
            margin = _tested(test, digits)["within"]
            yield f"The difference of {name} from {made.baseline} is less than {margin} at 95%."
    for at, what in enumerate(("reward", MAIN) if made.duels else ()):
        of = {name: tests[at] or {} for (_, name), tests in made.duels.items() if name in ordinary}
        beaten, lost, level = _sorted_tests(of)
        yield (
            f"GRPO in {what}: significantly above {beaten}; below {lost}; no significant difference"
            f" from {level}."
        )


def _sorted_tests(tests: Mapping[str, Row]) -> tuple[str, str, str]:
    """Names of those significantly above, significantly below and neither."""
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    for name, test in tests.items():
        certain = test["p_holm"] < 0.05 and test["difference"] != 0
        found[(0 if test["difference"] > 0 else 1) if certain else 2].append(name)
    above, below, level = (", ".join(names) or "none" for names in found)
    return above, below, level
