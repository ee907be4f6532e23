"""What a run says at its end: the table on test queries, metrics.json, routers and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from agents.baselines import static_router
from maw_gym.encoders.encoder_files import save_embedder, untrained_embedder
from maw_gym.envs.bandit import Bandit
from maw_gym.routers.depth_router import save_router
from maw_gym.tables.rewards import NDCG
from maw_gym.tables.task import RetrievalTask
from runners.experiments import figures
from runners.experiments.online import Trained
from runners.experiments.runs import Stopwatch, write_json
from runners.experiments.settings import CommonSettings

MEASURES = ("nDCG@10", "RR@10", "R@100", "Success@10")

Depths = NDArray[np.int64]


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        reward: see `maw_gym.envs.bandit.RewardSummary`; None where no depth is chosen.
        retrieval: mean of each measure over the test queries.
    """

    reward: dict[str, float | None] | None
    retrieval: dict[str, float]


def static_choices(
    task: RetrievalTask, settings: CommonSettings, split: str = "test"
) -> dict[str, Depths]:
    """Depths of a split's queries (N,) by rules that need no learner; the oracles come last.

    Without training queries nothing can be chosen or averaged on them.
    """
    train, test = task.table("train"), task.table(split)
    count = len(test)
    generator = np.random.default_rng(settings.seed)
    choices = {"random depth": generator.integers(test.num_depths, size=count)}
    if len(train):
        for name, reward in (("reward", settings.reward), ("nDCG@10", NDCG)):
            fixed = Bandit(train, reward=reward).best_fixed()
            choices[f"best fixed depth ({name})"] = np.full(count, fixed)
        rule = static_router("observed_reward", task, settings.reward).to(task.device)
        choices["observed-reward rule"] = rule.predict(test.observation(rule.observation))[0]
    if test.clusters.shape[1] == test.num_depths:
        choices["cluster's own depth"] = test.clusters.argmax(axis=1)
    choices["oracle (reward), upper bound"] = Bandit(test, reward=settings.reward).oracle
    choices["oracle (nDCG@10), upper bound"] = Bandit(test, reward=NDCG).oracle
    return choices


def static_rows(
    task: RetrievalTask, settings: CommonSettings, split: str = "test"
) -> dict[str, Row]:
    """The rows of `static_choices`."""
    rows = {
        name: judge(task, settings, choice, split)
        for name, choice in static_choices(task, settings, split).items()
    }
    # A random depth's expected reward is exact; the retrieval of that row is one draw's.
    drawn = rows["random depth"]
    assert drawn.reward is not None
    expected = drawn.reward | {"mean": drawn.reward["random"], "gap_closed": 0.0}
    rows["random depth"] = drawn._replace(reward=expected)
    return rows


def judge(
    task: RetrievalTask, settings: CommonSettings, depths: Depths, split: str = "test"
) -> Row:
    """Reward from the table, retrieval by ranking with the really encoded depths."""
    train, test = (Bandit(task.table(name), reward=settings.reward) for name in ("train", split))
    summary = test.summary(depths, train.best_fixed() if len(train) else None)
    evaluation, _ = task.evaluate(split, torch.as_tensor(depths))
    return Row(summary._asdict(), _chosen(evaluation.mean))


def report(
    task: RetrievalTask,
    settings: CommonSettings,
    learner: str,
    trained: Trained,
    folder: Path,
    watch: Stopwatch,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Judge a router on the test split, write what a run leaves behind, print the table.

    Args:
        task: of the run.
        settings: of the run.
        learner: its name in the table.
        trained: the router and its history.
        folder: gets router.safetensors, encoder.safetensors, metrics.json and figures/.
        watch: has timed the stages so far.
        facts: further JSON values about the training, for metrics.json.
    """
    test = task.table("test")
    with watch.stage("evaluation on test queries"):
        observations = test.observation(settings.observation)
        depths, _ = trained.router.to(task.device).predict(observations)
        result = judge(task, settings, depths)
        rows = encoder_rows(task) | static_rows(task, settings)
        save_router(folder / "router.safetensors", trained.router)
        save_embedder(
            folder / "encoder.safetensors", task.embedder, {"encoder": task.encoder_provenance}
        )
        figures.draw(task, settings, learner, trained, depths, folder / "figures")
    write_json(
        folder / "metrics.json",
        {
            "dataset": settings.dataset,
            "split": "test",
            "seed": settings.seed,
            **result._asdict(),
            "baselines": {name: row._asdict() for name, row in rows.items()},
            "chosen_at": trained.chosen_at,
            "training": dict(facts or {}),
            "wall_seconds": watch.seconds,
        },
    )
    print(table_text(ordered(rows, learner, result)))
    chosen = task.encoder_provenance.get("chosen")
    print(f"\n{len(test)} test queries of {settings.dataset}; encoder: {chosen}; run: {folder}")
    print(f"reward curves: tensorboard --logdir {settings.logdir}")


def ordered(rows: Mapping[str, Row], learner: str, result: Row) -> dict[str, Row]:
    """The rows with the learner's before the oracles."""
    oracles = {name: row for name, row in rows.items() if name.startswith("oracle")}
    others = {name: row for name, row in rows.items() if name not in oracles}
    return others | {learner: result} | oracles


def table_text(rows: Mapping[str, Row]) -> str:
    """The rows as a Markdown table."""
    head = ["method", "reward", "gap closed", *MEASURES]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, row in rows.items():
        reward = row.reward or {}
        lines.append(
            [
                name,
                _number(reward.get("mean"), 4),
                _number(reward.get("gap_closed"), 3),
                *(_number(row.retrieval[measure], 4) for measure in MEASURES),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = [
        [cell.ljust(width) if not column else cell.rjust(width)
         for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _chosen(means: Mapping[str, float]) -> dict[str, float]:
    return {measure: means[measure] for measure in MEASURES}


def encoder_rows(task: RetrievalTask, split: str = "test") -> dict[str, Row]:
    """Retrieval through the standard attention of the untrained and of the given encoder."""
    untrained = untrained_embedder(task.collection.doc_texts)
    zero_shot, _ = RetrievalTask(task.collection, untrained, task.device).evaluate(split)
    standard, _ = task.evaluate(split)
    return {
        "zero-shot NON-MAW": Row(None, _chosen(zero_shot.mean)),
        "standard attention": Row(None, _chosen(standard.mean)),
    }
