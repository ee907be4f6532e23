"""The experiment engine on a table worked out by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import TABLE

from maw_gym.corpora import QuerySet
from maw_gym.errors import DamagedFileError
from maw_gym.retrieval.evaluation import MEASURES, Evaluation
from maw_gym.retrieval.search import Ranking
from maw_gym.tables.depth_table import DepthTable
from runners.experiments.command_line import changed, flat
from runners.experiments.comparison import result_key, write_run
from runners.experiments.methods import METHODS, Result, by_depths, randomly
from runners.experiments.report import row_of
from runners.experiments.settings import (
    AnySpec,
    GRPOSpec,
    Spec,
    SupervisedSpec,
    TaskSettings,
)

SPEC = TaskSettings()


class Task:
    """Serves `TABLE` for training and test queries; a depth's nDCG@10 is the table's."""

    def __init__(self) -> None:
        ids = TABLE.query_ids
        queries = QuerySet(ids, ids, ({"d0": 1}, {"d1": 1}, {"d0": 1}))
        self.collection = SimpleNamespace(
            splits={"test": queries}, doc_ids=("d0", "d1"), provenance={"content": "fruit"}
        )
        self.embedder = SimpleNamespace(
            fingerprint=lambda: "an encoder", named_parameters=lambda: [("a", torch.zeros(7))]
        )
        self.device = torch.device("cpu")

    def table(self, split: str) -> DepthTable:
        return TABLE

    def evaluate(self, split: str, depths: torch.Tensor) -> tuple[Evaluation, Ranking]:
        ndcg = TABLE.ndcg[np.arange(3), depths.numpy()].astype(np.float64)
        ranking = Ranking(torch.tensor([[0.5, 0.25]] * 3), torch.tensor([[0, 1], [1, 0], [1, 0]]))
        return Evaluation({str(measure): ndcg for measure in MEASURES}), ranking


def chosen(task: Any, depths: list[int]) -> Result:
    return by_depths(task, SPEC, "test", np.array(depths))


def test_a_row_by_hand() -> None:
    """Rewards .3 .5 .7 .43 / .7 .5 .3 .33 / .3 .3 .3 .5 of three queries at four depths."""
    task: Any = Task()
    row = row_of(task, SPEC, chosen(task, [1, 1, 1]))
    assert row.reward is not None
    assert row.reward["mean"] == pytest.approx(1.3 / 3)
    assert row.reward["random"] == pytest.approx((1.93 + 1.83 + 1.4) / 12)
    assert row.reward["oracle"] == pytest.approx(1.9 / 3)
    # (1.3 / 3 - .43) / (1.9 / 3 - .43) = .01 / .61
    assert row.reward["gap_closed"] == pytest.approx(1 / 61, abs=1e-5)
    assert row.retrieval["nDCG@10"] == pytest.approx(1 / 3)  # .5, .5 and 0
    best = row_of(task, SPEC, chosen(task, [2, 0, 3])).reward
    assert best is not None
    assert best["gap_closed"] == pytest.approx(1)
    # The reward is nDCG@10 alone: 1, 1 and .5.
    alone = replace(SPEC, reward_weights=(0.0, 0.0, 1.0))
    assert row_of(task, alone, chosen(task, [2, 0, 3])).reward["mean"] == pytest.approx(2.5 / 3)  # type: ignore[index]


def test_what_is_kept_of_a_method(tmp_path: Path) -> None:
    task: Any = Task()
    result = chosen(task, [2, 0, 0])
    result.facts, result.history = {"a": 1}, [(0, 0.5), (10, 1 / 3)]
    result.save(tmp_path / "cells" / "one.json")
    kept = Result.load(tmp_path / "cells" / "one.json")
    assert kept.terms is not None
    assert kept.depths is not None
    assert kept.terms["reward"] == pytest.approx([0.7, 0.7, 0.3])
    assert kept.terms["alignment"].tolist() == [1.0, 1.0, 0.0]
    assert (kept.depths.tolist(), kept.parameters, kept.facts) == ([2, 0, 0], 7, {"a": 1})
    assert kept.history == [[0, 0.5], [10, 1 / 3]]
    assert kept.latency_ms is None
    content = (tmp_path / "cells" / "one.json").read_text()
    (tmp_path / "changed.json").write_text(content.replace("0.333", "0.433"))
    with pytest.raises(DamagedFileError):  # a number changed by hand is no result
        Result.load(tmp_path / "changed.json")
    write_run(tmp_path / "one.trec", task, "test", result, "mine", ranked=1)
    assert (tmp_path / "one.trec").read_text().splitlines()[1:] == [
        "fruit/berry Q0 d1 1 0.5 mine",
        "fruit/cherry Q0 d1 1 0.5 mine",
    ]
    # Of drawn depths the expected terms are kept: the means of the table's rows.
    drawn = randomly(task, Spec(replace(SPEC, seed=3)), "test", None)
    assert drawn.terms is not None
    assert drawn.terms["reward"] == pytest.approx([1.93 / 4, 1.83 / 4, 1.4 / 4])


@pytest.mark.parametrize("spec", [Spec(), GRPOSpec(), SupervisedSpec()])
def test_a_key_depends_on_every_setting(spec: AnySpec) -> None:
    task: Any = Task()
    changes: dict[str, Any] = {
        "alignment": "listwise", "reward_weights": (0.0, 0.0, 1.0), "observation": ("content",),
        "network": "mlp", "advantage": "critic", "ratio": "reference", "kl": "k3",
        "clip_range": 0.3, "labels": "rule", "batch_size": 64, "reference_interval": None,
        "balance": 0.5, "num_envs": 512, "group_size": 16, "seed": 5,
        "fold": 1, "folds": 3,
    }  # fmt: skip
    names = flat(spec)
    keys = {result_key("grpo", task, spec), result_key("ppo", task, spec)}
    for name, value in names.items():
        if name in ("dataset", "encoder", "device", "encoder_training", "clip_range_high"):
            continue
        other = changes.get(name, value * 2 if value else 0.5)
        if isinstance(value, int) and isinstance(other, float):
            other = 1
        keys.add(result_key("grpo", task, changed(spec, **{name: other})))
    left_out = {"dataset", "encoder", "device", "encoder_training", "clip_range_high"} & set(names)
    assert len(keys) == 2 + len(names) - len(left_out)
    # The names of data and encoder are none of it, what they hold is.
    assert result_key("grpo", task, changed(spec, dataset="x", encoder="y", device="auto")) in keys
    task.collection.provenance["content"] = "vegetables"
    assert result_key("grpo", task, spec) not in keys


def test_every_method_can_be_told_from_the_others() -> None:
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    for name, method in METHODS.items():
        assert method.kind in ("ranker", "encoder", "static", "learner", "oracle"), name
