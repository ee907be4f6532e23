"""What a run says at its end: the table on test queries, metrics.json, routers and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from maw_gym.encoders.files import save_embedder
from maw_gym.envs.bandit import Bandit
from maw_gym.files import write_json
from maw_gym.routers.depth_router import save_router
from maw_gym.tables.task import RetrievalTask
from runners.experiments.engine import ranked
from runners.experiments.figures import draw
from runners.experiments.methods import METHODS
from runners.experiments.results import Did
from runners.experiments.runs import Stopwatch
from runners.experiments.settings import RouterSettings, TaskSettings
from runners.experiments.tables import run_table
from runners.experiments.training import ROUTER
from runners.report_page.page import write_report_page

MEASURES: Final = ("nDCG@10", "RR@10", "R@100", "Success@10")
RANKERS: Final = ("bm25", "dense-bm25")
ENCODERS: Final = ("non-maw-zero-shot", "standard-attention")
STATIC: Final = (
    "random",
    "best-fixed-reward",
    "best-fixed-ndcg",
    "observed-reward",
)
ORACLES: Final = ("oracle", "oracle-ndcg")
BASELINES: Final = RANKERS + ENCODERS + STATIC + ORACLES


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        reward: see `maw_gym.envs.bandit.RewardSummary`; None where no depth is chosen.
        retrieval: mean of each measure over the split's queries.
    """

    reward: dict[str, float | None] | None
    retrieval: dict[str, float]


def row_of(task: RetrievalTask, spec: TaskSettings, did: Did, split: str = "test") -> Row:
    """Reward from the table, retrieval by ranking with the really encoded queries."""
    evaluation, _ = ranked(task, did, split)
    retrieval = {measure: evaluation.mean[measure] for measure in MEASURES}
    if did.depths is None:
        return Row(None, retrieval)
    train, test = (Bandit(task.table(name), reward=spec.reward) for name in ("train", split))
    summary = test.summary(did.depths, train.best_fixed() if len(train) else None)
    return Row(summary._asdict(), retrieval)


def rows_of(
    task: RetrievalTask, spec: TaskSettings, names: Sequence[str] = BASELINES, split: str = "test"
) -> dict[str, Row]:
    """The rows of methods that need no training, by title; those that lack something are left out.

    Args:
        task: of the run.
        spec: of the run.
        names: of the methods.
        split: whose queries are judged.
    """
    rows = {}
    for name in names:
        method = METHODS[name]
        if method.lacks(task) is None:
            did = method.run(task, method.specify(spec, task), split, None)
            rows[method.title] = row_of(task, spec, did, split)
    random = METHODS["random"].title
    if random in rows:
        # A random depth's expected reward is exact; the retrieval of that row is one draw's.
        reward = rows[random].reward
        assert reward is not None
        expected = reward | {"mean": reward["random"], "gap_closed": 0.0}
        rows[random] = rows[random]._replace(reward=expected)
    return rows


def ordered(rows: Mapping[str, Row], learner: str, result: Row) -> dict[str, Row]:
    """The rows with the learner's before the oracles."""
    oracles = [METHODS[name].title for name in ORACLES]
    others = {title: row for title, row in rows.items() if title not in oracles}
    return others | {learner: result} | {title: rows[title] for title in oracles}


def metrics(
    settings: TaskSettings,
    rows: Mapping[str, Row],
    result: Row | None,
    watch: Stopwatch,
    split: str = "test",
) -> dict[str, Any]:
    """The content of metrics.json."""
    return {
        "dataset": settings.dataset,
        "split": split,
        "seed": settings.seed,
        **(result._asdict() if result else {}),
        "baselines": {title: row._asdict() for title, row in rows.items()},
        "wall_seconds": watch.seconds,
    }


def report(
    task: RetrievalTask,
    spec: RouterSettings,
    learner: str,
    did: Did,
    folder: Path,
    watch: Stopwatch,
) -> None:
    """Judge a learner on the test split, write what a run leaves behind, print the table.

    Args:
        task: of the run.
        spec: of the training.
        learner: its name in the table.
        did: what it did with the test queries.
        folder: gets router.safetensors, encoder.safetensors, metrics.json, figures/, report.html.
        watch: has timed the stages so far.
    """
    assert did.trained is not None
    with watch.stage("evaluation on test queries"):
        result, rows = row_of(task, spec, did), rows_of(task, spec)
        router = did.trained.router
        router.settings["hybrid_weight"] = task.hybrid_weight  # of RoutedEncoder.search
        save_router(folder / ROUTER, router)
        save_embedder(
            folder / "encoder.safetensors", task.embedder, {"encoder": task.encoder_provenance}
        )
        draw(task, spec, learner, did, folder / "figures")
    content = metrics(spec, rows, result, watch)
    content |= {"chosen_at": did.trained.chosen_at, "training": did.facts}
    write_json(folder / "metrics.json", content)
    print(run_table(ordered(rows, learner, result), MEASURES))
    chosen, count = task.encoder_provenance.get("chosen"), len(task.table("test"))
    print(f"\n{count} test queries of {spec.dataset}; encoder: {chosen}; run: {folder}")
    print(f"reward curves: tensorboard --logdir {folder.parent}")
    print(f"query by query: {write_report_page(folder, task)}")
