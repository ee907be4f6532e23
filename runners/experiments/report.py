"""What a single run says at its end: its table, metrics.json, figures, scores by query."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from maw_gym.agents.supervised import label_sentence
from maw_gym.distributed import processes
from maw_gym.encoders.files import save_embedder
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import UnwritableError
from maw_gym.files import cache_home, cached, content_key, fingerprint, write_json, written_whole
from maw_gym.routers.depth_router import save_router
from maw_gym.run import METRICS, PER_QUERY
from maw_gym.runners.experiments import figures
from maw_gym.runners.experiments.analysis import MAIN, query_frame
from maw_gym.runners.experiments.comparison import result_key, write_run
from maw_gym.runners.experiments.methods import METHODS
from maw_gym.runners.experiments.result import WEIGHT, Result, judged
from maw_gym.runners.experiments.runs import Stopwatch
from maw_gym.runners.experiments.settings import Spec, TaskSettings
from maw_gym.runners.experiments.training import ROUTER, Trained
from maw_gym.runners.report_page.page import MEASURES, write_report_page
from maw_gym.tables.task import RetrievalTask

ORACLES: Final = {
    "oracle": "oracle (reward), upper bound",
    "oracle-ndcg": "oracle (nDCG@10), upper bound",
}
BASELINES: Final = {
    "bm25": "BM25",
    "dense-bm25": "dense + BM25",
    "non-maw-zero-shot": "zero-shot NON-MAW",
    "standard-attention": "standard attention",
    "random": "random depth",
    "best-fixed-reward": "best fixed depth (reward)",
    "best-fixed-ndcg": "best fixed depth (nDCG@10)",
    "observed-reward": "observed-reward rule",
    **ORACLES,
}


# --- numbers and tables ----------------------------------------------------------------------


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


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
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    padded = (
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in whole
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table, compressed where the name ends in ".gz"; equal tables have equal bytes."""
    packed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    with written_whole(path) as temporary:
        frame.to_csv(temporary, index=False, compression=packed, lineterminator="\r\n")


# --- the rows --------------------------------------------------------------------------------


class RunRow(NamedTuple):
    """One line of a single run's table: a `RewardSummary` or None, and means of `MEASURES`."""

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
    task: RetrievalTask,
    spec: TaskSettings,
    titles: Mapping[str, str] = BASELINES,
    split: str = "test",
) -> dict[str, RunRow]:
    """The rows of methods that need no training, by title, without those that lack something.

    They are cached: a run over the same encoder and queries reads them.
    """
    text, rows = task.pretrained, {}  # untrained encoders stand on that text encoder
    about = {"split": split, "text": text.name, "weights": fingerprint(text.own_weights())}
    for name, title in titles.items():
        method = METHODS[name]
        if method.missing(task) is None:
            # All of the settings that they depend on.
            asked = TaskSettings(
                alignment=spec.alignment,
                reward_weights=spec.reward_weights,
                seed=spec.seed if method.seeded else 0,
            )
            own = method.specify(Spec(asked), task)
            key = content_key(about | {"result": result_key(name, task, own)})
            path = cache_home() / "rows" / f"{key}.json"
            run = partial(method.run, task, own, split, None)
            try:
                result = cached(path, run, lambda to, made: made.save(to), Result.load, True)
            except UnwritableError:  # of a cache that is read only, at the end of a training
                if processes() > 1:
                    raise
                result = run()
            row = rows[title] = row_of(task, spec, result, split)
            if name == "random" and row.reward is not None:
                # Its expected reward is exact; the retrieval of that row is one draw's.
                expected = row.reward | {"mean": row.reward["random"], "gap_closed": 0.0}
                rows[title] = row._replace(reward=expected)
    return rows


def ordered(rows: Mapping[str, RunRow], learner: str, result: RunRow) -> dict[str, RunRow]:
    """The rows with the learner's before the oracles."""
    bounds = {title: row for title, row in rows.items() if title in ORACLES.values()}
    others = {title: row for title, row in rows.items() if title not in bounds}
    return others | {learner: result} | bounds


def run_table(rows: Mapping[str, RunRow]) -> str:
    """The table of a single run: reward and retrieval of every method, by title."""
    digits = digits_for(min(len(row.result.measures[MAIN]) for row in rows.values()))
    lines = []
    for title, row in rows.items():
        mean, closed = map((row.reward or {}).get, ("mean", "gap_closed"))
        cells = [number(mean, digits), number(closed, min(digits, 3))]
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
    trained: Trained,
    folder: Path,
    watch: Stopwatch,
) -> None:
    """Judge a learner on the test split, write what a run leaves behind, print the table."""
    with watch.stage("evaluation on test queries"):
        result = judged(task, spec, "test", trained)
        row, rows = row_of(task, spec, result), rows_of(task, spec)
        every = ordered(rows, learner, row)
        # Of RoutedEncoder.search.
        fused = rows.get(BASELINES["dense-bm25"])
        weight = fused.result.facts[WEIGHT] if fused else task.hybrid_weight
        trained.router.settings["hybrid_weight"] = weight
        save_router(folder / ROUTER, trained.router)
        save_embedder(
            folder / "encoder.safetensors", task.embedder, {"encoder": task.encoder_provenance}
        )
        ids = task.collection.splits["test"].ids
        about = {"dataset": spec.dataset, "fold": spec.fold, "encoder_seed": spec.encoder_seed}
        frames = [
            query_frame(one.result, ids, **about, seed=spec.seed, method=title)
            for title, one in every.items()
        ]
        write_csv(folder / PER_QUERY, pd.concat(frames))
        write_run(folder / "run.trec.gz", task, result, learner)
        figures.draw_run(task, spec, learner, result, folder / "figures")
    content = metrics(spec, rows, row, watch)
    content |= {"chosen_at": trained.chosen_at, "training": trained.facts}
    write_json(folder / METRICS, content)
    if "label_histogram" in trained.facts:
        print(f"\nlabels: {label_sentence(trained.facts)}")
    print(run_table(every))
    chosen = task.encoder_provenance.get("chosen")
    print(f"\n{len(ids)} test queries of {spec.dataset}; encoder: {chosen}; run: {folder}")
    print(f"reward curves: tensorboard --logdir {folder.parent}")
    print(f"query by query: {write_report_page(folder, task)}")
