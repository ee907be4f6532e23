"""What a run or a comparison says at its end: tables, metrics.json, report.md, scores by query."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from agents.supervised import label_sentence
from maw_gym.encoders.files import save_embedder
from maw_gym.envs.bandit import Bandit
from maw_gym.files import write_json, written_whole
from maw_gym.retrieval.evaluation import Evaluation
from maw_gym.routers.depth_router import save_router
from maw_gym.tables.task import RetrievalTask
from runners.experiments import figures
from runners.experiments.analysis import COLUMNS, MAIN, NAMES, Comparison, Row
from runners.experiments.comparison import slug, write_run
from runners.experiments.methods import METHODS, Floats, Result
from runners.experiments.runs import Stopwatch
from runners.experiments.settings import CommonSpec, TaskSettings
from runners.experiments.training import ROUTER
from runners.report_page.page import write_report_page

MEASURES: Final = ("nDCG@10", "RR@10", "R@100", "Success@10")  # of a single run's table
ORACLES: Final = ("oracle", "oracle-ndcg")
BASELINES: Final = (
    "bm25",
    "dense-bm25",
    "non-maw-zero-shot",
    "standard-attention",
    "random",
    "best-fixed-reward",
    "best-fixed-ndcg",
    "observed-reward",
    *ORACLES,
)

FIGURES: Final = {
    "reward_curves": "Mean reward of the greedy policy on validation queries while it trains; bands"
    " reach from the lowest to the highest seed.",
    "ndcg": "nDCG@10 on test queries with bootstrap 95% intervals over queries.",
    "depth_usage": "How often each depth is chosen for test queries.",
    "reward_terms": "The reward and its terms at every depth, means over test queries.",
    "differences": "Difference in nDCG@10 from the baseline, query by query, sorted.",
}


# --- numbers and tables ----------------------------------------------------------------------


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def percent(value: float | None) -> str:
    """A relative change."""
    return "-" if value is None else f"{100 * value:+.1f}%"


def share(value: float, whole: float, digits: int = 1) -> str:
    """A size as a share of another."""
    return f"{100 * value / whole:.{digits}f}%" if whole else "-"


def p_value(value: float) -> str:
    """A p-value; the smallest that 10,000 draws can tell is shown as a bound."""
    return "<.0001" if value < 1e-4 else f"{value:.4f}".lstrip("0")


def digits_for(queries: int) -> int:
    """Digits of a mean over so many queries: more would be noise."""
    return 2 if queries < 100 else 3 if queries < 1000 else 4


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A padded Markdown table; the first `left` columns are aligned to the left."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    whole = [list(head), rule, *map(list, lines)]
    widths = [max(len(line[column]) for line in whole) for column in range(len(head))]
    padded = (
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in whole
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


Columns = Mapping[str, Callable[[Row], str]]


def _table(columns: Columns, rows: Iterable[Row], left: int = 1) -> str:
    """One line for each row, a column for each function of a row."""
    return markdown(list(columns), [[of(row) for of in columns.values()] for row in rows], left)


def _difference(test: Row, digits: int = 5) -> str:
    """A difference with its interval."""
    low, high = (number(test[name], digits, sign=True) for name in ("low", "high"))
    return f"{number(test['difference'], digits, sign=True)} [{low}, {high}]"


def _counts(test: Row) -> str:
    return f"{test['wins']} / {test['ties']} / {test['losses']}"


def difference_table(made: Comparison, rows: Sequence[Row] | None = None) -> str:
    """Differences in nDCG@10 from the baseline, and relative changes."""
    tested: dict[str, Callable[[Row], str]] = {
        f"minus {made.baseline}": lambda test: _difference(test, 4),
        "p": lambda test: p_value(test["p"]),
        "p (Holm)": lambda test: p_value(test["p_holm"]),
        "detectable": lambda test: share(test["smallest_detectable"], test["baseline_mean"]),
        "within": lambda test: share(test["equivalence_margin"], test["baseline_mean"]),
        "wins / ties / losses": _counts,
    }

    def of_test(function: Callable[[Row], str]) -> Callable[[Row], str]:
        return lambda row: function(row["test"]) if row["test"] else "-"

    columns: Columns = {
        "method": lambda row: row["method"],
        MAIN: lambda row: number(row["retrieval"][MAIN]["mean"]),
        **{head: of_test(function) for head, function in tested.items()},
        "vs zero-shot": lambda row: percent(row["relative"]["zero_shot"]),
        "vs trained": lambda row: percent(row["relative"]["trained"]),
    }
    return _table(columns, made.rows if rows is None else rows)


def retrieval_table(rows: Sequence[Row]) -> str:
    """Every measure with its interval over queries."""

    def cell(name: str) -> Callable[[Row], str]:
        return lambda row: "{mean:.4f} [{low:.3f}, {high:.3f}]".format(**row["retrieval"][name])

    columns = {f"{name} [95%]": cell(name) for name in NAMES}
    return _table({"method": lambda row: row["method"], **columns}, rows)


def reward_table(rows: Sequence[Row]) -> str:
    """Reward, its terms and the share of the gap, of methods that choose depths."""

    def term(name: str) -> Callable[[Row], str]:
        return lambda row: number(row["reward"]["mean" if name == "reward" else name])

    columns: Columns = {
        "method": lambda row: row["method"],
        **{name: term(name) for name in COLUMNS},
        "gap closed": lambda row: number(row["reward"]["gap_closed"], 3),
        "depths used": lambda row: str(row["depths_used"]),
    }
    return _table(columns, [row for row in rows if row["reward"]])


def cost_table(rows: Sequence[Row]) -> str:
    """Parameters, training time and latency."""
    columns: Columns = {
        "method": lambda row: row["method"],
        "what it is": lambda row: row["about"],
        "parameters": lambda row: "-" if row["params"] is None else f"{row['params']:,}",
        "training s": lambda row: number(row["training_seconds"], 1),
        "added ms per query": lambda row: number(row["latency_ms"], 2, sign=True),
        "seeds": lambda row: str(len(row["seeds"])) if row["seeds"] else "-",
    }
    return _table(columns, rows, left=2)


def seed_table(rows: Sequence[Row]) -> str:
    """How nDCG@10 varies from seed to seed, with intervals where they were asked for."""
    found = [row["retrieval"][MAIN] | {"method": row["method"]} for row in rows]
    found = [row for row in found if "seed_deviation" in row]
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row["method"],
        MAIN: lambda row: number(row["mean"]),
        "deviation over seeds": lambda row: number(row["seed_deviation"]),
    }
    if any("seed_low" in row for row in found):
        columns["95% over seeds"] = lambda row: "[{seed_low:.4f}, {seed_high:.4f}]".format(**row)
    return _table(columns, found) if found else ""


def group_table(scores: Mapping[str, Floats], groups: Sequence[str]) -> str:
    """Mean nDCG@10 of every method on the queries of each group, and with all groups alike."""
    sizes = Counter(groups)
    head = ["method", *(f"{name or 'none'} ({sizes[name]})" for name in sorted(sizes)), "alike"]
    lines = []
    for method, values in scores.items():
        of_groups = Evaluation({MAIN: values}).by_group(groups).values()
        means = [one.mean[MAIN] for one in of_groups]
        lines.append([method, *map(number, means), number(float(np.mean(means)))])
    return markdown(head, lines)


def pair_table(tests: Mapping[tuple[str, str], tuple[Row | None, Row]]) -> str:
    """Pairs of methods, the first minus the second, in reward and in nDCG@10."""
    head = ["", "reward", "p", MAIN, "p", "detectable", "within"]
    lines = []
    for (first, second), (reward, ndcg) in tests.items():
        lines.append(
            [
                f"{first} minus {second}",
                *(["-", "-"] if reward is None else [_difference(reward), p_value(reward["p"])]),
                _difference(ndcg),
                p_value(ndcg["p"]),
                share(ndcg["smallest_detectable"], ndcg["baseline_mean"], 2),
                share(ndcg["equivalence_margin"], ndcg["baseline_mean"], 2),
            ]
        )
    return markdown(head, lines)


def duel_table(reward: Mapping[str, Row], ndcg: Mapping[str, Row]) -> str:
    """GRPO minus every other method that chooses depths, in reward and in nDCG@10."""
    head = ["GRPO minus", "reward", "p (Holm)", MAIN, "p (Holm)", "wins / ties / losses"]
    lines = [
        [
            name,
            number(test["difference"], 5, sign=True),
            p_value(test["p_holm"]),
            number(ndcg[name]["difference"], 4, sign=True),
            p_value(ndcg[name]["p_holm"]),
            _counts(ndcg[name]),
        ]
        for name, test in reward.items()
    ]
    return markdown(head, lines)


# --- a comparison ----------------------------------------------------------------------------


def write_comparisons(
    made: Sequence[Comparison], folder: Path, command: str, quick: bool = False
) -> None:
    """Write results.json, per_query.csv, the figures and, last, report.md."""
    write_json(folder / "results.json", [row for one in made for row in one.rows])
    _write_csv(folder / "per_query.csv", (line for one in made for line in _lines(one)))
    for one in made:
        figures.draw_comparison(one, folder / "figures", slug(one.dataset))
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(report_text(made, command, quick), encoding="utf-8")


def report_text(made: Sequence[Comparison], command: str, quick: bool = False) -> str:
    """The whole of report.md."""
    first = made[0]
    encoder_seeds = dict.fromkeys(fold.encoder_seed for fold in first.references)
    parts = [
        "# Comparison",
        f"Made by `{command}`.",
        f"Learners saw {first.references[0].facts['timesteps']:,} training queries each, on the"
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
            "**A quick run**: one seed, fewer timesteps, no encoder trained but the MAW encoder."
            " Its numbers show that everything works; they are no result. The TREC runs have the"
            " first 10 documents of each query."
        )
    for one in made:
        parts += _sections(one)
    return "\n\n".join(parts) + "\n"


def _sections(made: Comparison) -> Iterator[str]:
    rows = made.rows
    ordinary = [row for row in rows if row["kind"] != "oracle"]
    oracles = [row for row in rows if row["kind"] == "oracle"]
    yield f"## {made.dataset}"
    yield "\n".join(f"- {note}" for note in _notes(made))
    yield "### Plain reading"
    yield "\n".join(f"- {sentence}" for sentence in reading(made))
    yield f"### nDCG@10 against {made.baseline}"
    yield difference_table(made, ordinary)
    yield "### Retrieval"
    yield retrieval_table(ordinary)
    if oracles:
        yield "Upper bounds, which read the answers:"
        yield retrieval_table(oracles)
    if any(row["reward"] for row in rows):
        yield "### Reward"
        yield reward_table(rows)
    groups = [group for fold in made.folds for group in fold.groups]
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
        yield duel_table(*made.duels)
    if made.pairs:
        yield "### Pairs"
        yield pair_table(made.pairs)
        yield "p is not corrected here."
    if seeds := seed_table(rows):
        yield "### Seeds"
        yield seeds
    yield "### Cost"
    yield cost_table(rows)
    yield (
        "Training is that of the method alone: of a router, without the encoder whose depths it"
        " chooses. Latency is the median over 40 queries, one at a time, of what the method takes"
        " longer than the MAW encoder's standard attention."
    )
    for figure, caption in FIGURES.items():
        yield f"![{caption}](figures/{slug(made.dataset)}-{figure}.png)\n\n*{caption}*"


def _notes(made: Comparison) -> Iterator[str]:
    folds, first = made.folds, made.folds[0].facts
    counts = ", ".join(f"{count:,} {split}" for split, count in first["queries"].items())
    if len(folds) > 1:
        yield (
            f"All queries are cross-validated in {len(folds)} folds: results of all"
            f" {len(made.query_ids):,} test queries pooled. Fold 0 has {counts} queries. Encoders"
            " and routers are trained in every fold anew."
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
    chosen = sorted({fold.facts["chosen encoder"] for fold in folds})
    yield f"MAW encoder: {', '.join(chosen)}; {first['depths']} depths."
    yield f"Observation: {', '.join(first['observation'])}; network: {first['network']}."
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


def reading(made: Comparison) -> Iterator[str]:
    """What the numbers say, in sentences that can be checked against the tables."""
    rows = {row["method"]: row for row in made.rows}
    ordinary = {name: row for name, row in rows.items() if row["kind"] != "oracle"}

    def mean(name: str) -> float:
        value: float = rows[name]["retrieval"][MAIN]["mean"]
        return value

    best = max(ordinary, key=mean)
    yield (
        f"Highest {MAIN}: {best} with {mean(best):.4f}; the baseline {made.baseline} has"
        f" {mean(made.baseline):.4f}."
    )
    above, below, _ = _sorted_tests({n: row["test"] for n, row in ordinary.items() if row["test"]})
    yield f"Significantly above the baseline (Holm, .05): {above}."
    yield f"Significantly below the baseline (Holm, .05): {below}."
    for name in ("grpo", "full-ndcg", "full-ndcg-retrieval"):
        test = rows.get(name, {}).get("test")
        if test:
            margin = share(test["equivalence_margin"], test["baseline_mean"])
            yield f"The difference of {name} from {made.baseline} is less than {margin} at 95%."
    for what, tests in zip(("reward", MAIN), made.duels or (), strict=False):
        beaten, lost, level = _sorted_tests({n: t for n, t in tests.items() if n in ordinary})
        yield (
            f"GRPO in {what}: significantly above {beaten}; below {lost}; no significant difference"
            f" from {level}."
        )
    for name in ("grpo", "supervised-oracle", "supervised-rule"):
        if name in rows:
            relative = rows[name]["relative"]
            yield (
                f"{name} against NON-MAW: {percent(relative['zero_shot'])} zero-shot,"
                f" {percent(relative['trained'])} trained."
            )


def _sorted_tests(tests: Mapping[str, Row]) -> tuple[str, str, str]:
    """Names of those significantly above, significantly below and neither."""
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    for name, test in tests.items():
        certain = test["p_holm"] < 0.05 and test["difference"] != 0
        found[(0 if test["difference"] > 0 else 1) if certain else 2].append(name)
    above, below, level = (", ".join(names) or "none" for names in found)
    return above, below, level


def _lines(made: Comparison) -> Iterator[list[Any]]:
    """Every score of every query, method and seed."""
    for name, results in made.results.items():
        per_encoder = len(results) // made.encoders
        for at, result in enumerate(results):
            # Encoder by encoder, seed by seed, fold by fold.
            encoder, place = divmod(at, per_encoder)
            seed, fold = divmod(place, len(made.folds))
            of = made.references[encoder * len(made.folds) + fold]
            about = [made.dataset, of.fold, name, of.encoder_seed]
            number = made.seeds[seed] if made.methods[name].seeded else 0
            yield from _query_lines(about, number, of.query_ids, result)


def _query_lines(
    about: Sequence[Any], seed: int, query_ids: Sequence[str], result: Result
) -> Iterator[list[Any]]:
    dataset, fold, name, encoder_seed = about
    count = len(query_ids)
    depths = [""] * count if result.depths is None else result.depths.tolist()
    terms = [(result.terms or {}).get(column, np.full(count, "")).tolist() for column in COLUMNS]
    scores = [result.measures[measure].tolist() for measure in NAMES]
    for query, *values in zip(query_ids, depths, *terms, *scores, strict=True):
        yield [dataset, fold, query, name, encoder_seed, seed, *values]


def _write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    """Scores by query, compressed where the name ends in ".gz"."""
    head = ["dataset", "fold", "query_id", "method", "encoder_seed", "seed", "depth"]
    with written_whole(path) as temporary, temporary.open("wb") as raw:
        packed: Any = raw
        if path.suffix == ".gz":
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
        with packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*head, *COLUMNS, *NAMES])
            writer.writerows(lines)


# --- a single run ----------------------------------------------------------------------------


class RunRow(NamedTuple):
    """One line of a single run's table.

    Attributes:
        reward: see `maw_gym.envs.bandit.RewardSummary`; None where no depth is chosen.
        retrieval: mean of each of `MEASURES` over the split's queries.
        result: where they come from.
    """

    reward: dict[str, float | None] | None
    retrieval: dict[str, float]
    result: Result

    def blocks(self) -> dict[str, Any]:
        """The part of metrics.json that tells of it."""
        return {"reward": self.reward, "retrieval": self.retrieval}


def row_of(task: RetrievalTask, spec: TaskSettings, result: Result, split: str = "test") -> RunRow:
    """Reward from the table, retrieval by ranking with the really encoded queries."""
    retrieval = {measure: float(result.measures[measure].mean()) for measure in MEASURES}
    if result.depths is None:
        return RunRow(None, retrieval, result)
    train, test = (Bandit(task.table(name), reward=spec.reward) for name in ("train", split))
    summary = test.summary(result.depths, train.best_fixed() if len(train) else None)
    return RunRow(summary._asdict(), retrieval, result)


def rows_of(
    task: RetrievalTask, spec: TaskSettings, names: Sequence[str] = BASELINES, split: str = "test"
) -> dict[str, RunRow]:
    """The rows of methods that need no training, by title; those that lack something are left
    out.
    """
    rows = {}
    for method in map(METHODS.__getitem__, names):
        if method.missing(task) is None:
            result = method.run(task, method.specify(CommonSpec(spec), task), split, None)
            rows[method.title] = row_of(task, spec, result, split)
    random = METHODS["random"].title
    if random in rows:
        # A random depth's expected reward is exact; the retrieval of that row is one draw's.
        reward = rows[random].reward
        assert reward is not None
        expected = reward | {"mean": reward["random"], "gap_closed": 0.0}
        rows[random] = rows[random]._replace(reward=expected)
    return rows


def ordered(rows: Mapping[str, RunRow], learner: str, result: RunRow) -> dict[str, RunRow]:
    """The rows with the learner's before the oracles."""
    oracles = [METHODS[name].title for name in ORACLES]
    others = {title: row for title, row in rows.items() if title not in oracles}
    return others | {learner: result} | {title: rows[title] for title in oracles}


def run_table(rows: Mapping[str, RunRow]) -> str:
    """The table of a single run: reward and retrieval of every method, by title."""
    digits = digits_for(min(len(row.result.measures[MAIN]) for row in rows.values()))
    lines = []
    for title, row in rows.items():
        reward = row.reward or {}
        cells = [
            number(reward.get("mean"), digits),
            number(reward.get("gap_closed"), min(digits, 3)),
        ]
        lines.append([title, *cells, *(number(row.retrieval[name], digits) for name in MEASURES)])
    return markdown(["method", "reward", "gap closed", *MEASURES], lines)


def metrics(
    settings: TaskSettings,
    rows: Mapping[str, RunRow],
    result: RunRow | None,
    watch: Stopwatch,
    split: str = "test",
) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "dataset": settings.dataset,
        "split": split,
        "seed": settings.seed,
        **(result.blocks() if result else {}),
        "baselines": {title: row.blocks() for title, row in rows.items()},
        "wall_seconds": watch.seconds,
    }


def report(
    task: RetrievalTask,
    spec: TaskSettings,
    learner: str,
    result: Result,
    folder: Path,
    watch: Stopwatch,
) -> None:
    """Judge a learner on the test split, write what a run leaves behind, print the table."""
    assert result.trained is not None
    with watch.stage("evaluation on test queries"):
        row, rows = row_of(task, spec, result), rows_of(task, spec)
        router = result.trained.router
        router.settings["hybrid_weight"] = task.hybrid_weight  # of RoutedEncoder.search
        save_router(folder / ROUTER, router)
        save_embedder(
            folder / "encoder.safetensors", task.embedder, {"encoder": task.encoder_provenance}
        )
        every = ordered(rows, learner, row)
        ids = task.collection.splits["test"].ids
        about = (spec.dataset, spec.fold)
        _write_csv(
            folder / "per_query.csv.gz",
            (
                line
                for title, one in every.items()
                for line in _query_lines(
                    (*about, title, spec.encoder_seed), spec.seed, ids, one.result
                )
            ),
        )
        write_run(folder / "run.trec.gz", task, "test", result, learner)
        figures.draw_run(task, spec, learner, result, folder / "figures")
    content = metrics(spec, rows, row, watch)
    content |= {"chosen_at": result.chosen_at, "training": result.facts}
    write_json(folder / "metrics.json", content)
    print(run_table(every))
    chosen = task.encoder_provenance.get("chosen")
    print(f"\n{len(ids)} test queries of {spec.dataset}; encoder: {chosen}; run: {folder}")
    print(f"reward curves: tensorboard --logdir {folder.parent}")
    print(f"query by query: {write_report_page(folder, task)}")
