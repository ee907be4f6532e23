"""The parts of a comparison, by numbers worked out by hand."""

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maw_gym.agents.grpo.settings import GRPOSettings
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.runners.compare import CompareSettings
from maw_gym.runners.experiments import report
from maw_gym.runners.experiments.analysis import COLUMNS, NAMES, Comparison, Fold
from maw_gym.runners.experiments.command_line import changed, made
from maw_gym.runners.experiments.comparison import result_key, slug, write_run
from maw_gym.runners.experiments.comparison_report import group_table, pair_table, percent
from maw_gym.runners.experiments.methods import METHODS
from maw_gym.runners.experiments.report import digits_for, markdown, p_value, rows_of
from maw_gym.runners.experiments.result import Result, by_depths, randomly
from maw_gym.runners.experiments.settings import Spec, TaskSettings
from maw_gym.tables.depth_table import TERMS, DepthTable

SPEC = TaskSettings()


def cell(ndcg, reward=None):
    terms = reward and dict.fromkeys(COLUMNS, np.array(reward))
    depths = np.zeros(len(ndcg), np.int64) if reward else None
    return Result(dict.fromkeys(NAMES, np.array(ndcg)), depths, terms or None)


def comparison(results, sizes=(2, 1), encoders=1, **more):
    """Of folds of these sizes, in which a random depth gets .4 and the best .8."""
    folds = []
    for encoder, (fold, size) in itertools.product(range(encoders), enumerate(sizes)):
        ids = tuple(f"q{fold}-{row}" for row in range(size))
        rewards = np.tile(np.float32([0, 0.4, 0.8]), (size, 1))
        table = DepthTable(ids, **dict.fromkeys(TERMS, rewards), blocks={})
        test = SimpleNamespace(splits={"test": SimpleNamespace(ids=ids)})
        task = SimpleNamespace(collection=test, table=lambda split, table=table: table)
        spec = TaskSettings("x", fold=fold, encoder_seed=encoder, reward_weights=(0, 0, 1))
        folds.append(Fold(task, Spec(spec)))
    return Comparison(folds, results, next(iter(results)), **more)


def test_scores_are_pooled_over_folds_and_averaged_over_seeds():
    cells = [cell([0.0, 1.0]), cell([0.5]), cell([1.0, 1.0]), cell([0.0])]
    made = comparison({"grpo": cells}, seeds=(0, 7))
    assert made.query_ids == ["q0-0", "q0-1", "q1-0"]
    assert made.values("grpo", "nDCG@10").tolist() == [[0.0, 1.0, 0.5], [1.0, 1.0, 0.0]]
    assert made.scores("grpo").tolist() == [0.5, 1.0, 0.25]
    assert made.per_query[["fold", "query_id", "seed", "nDCG@10"]].to_numpy().tolist() == [
        [0, "q0-0", 0, 0.0], [0, "q0-1", 0, 1.0], [1, "q1-0", 0, 0.5],
        [0, "q0-0", 7, 1.0], [0, "q0-1", 7, 1.0], [1, "q1-0", 7, 0.0],
    ]  # fmt: skip


def test_every_encoder_has_scores_of_its_own_and_the_seeds_on_it_are_averaged():
    cells = [cell([0.0, 1.0]), cell([1.0, 1.0]), cell([0.2, 0.4]), cell([0.4, 0.0])]
    made = comparison({"grpo": cells}, (2,), encoders=2, seeds=(0, 1))
    assert made.by_encoder("grpo", "nDCG@10") == pytest.approx(np.array([[0.5, 1.0], [0.3, 0.2]]))
    assert made.scores("grpo") == pytest.approx([0.4, 0.6])
    assert made.per_query["encoder_seed"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_constant_difference_has_itself_as_interval_and_margin():
    results = {"maw-single": [cell([0.2, 0.6])] * 2, "grpo": [cell([0.1, 0.5])] * 2}
    (test,) = comparison(results, (2,), encoders=2).compared([("grpo", "maw-single")])
    numbers = [test[name] for name in ("difference", "low", "high", "equivalence_margin")]
    assert numbers == pytest.approx([-0.1, -0.1, -0.1, 0.1])
    assert test["baseline_mean"] == pytest.approx(0.4)


def test_rows_by_hand():
    ppo = [cell([1.0, 0.5], [0.5, 0.7]), cell([0.0], [0.6])]
    ppo += [cell([1.0, 0.5], [0.5, 0.7]), cell([0.6], [0.6])]
    results = {
        "bm25": [cell([0.5, 0.5]), cell([0.5])],
        "ppo": ppo,
        "oracle": [cell([1.0, 1.0]), cell([1.0])],
    }
    found = comparison(results, seeds=(0, 1), seed_intervals=True)
    first, second, third = found.rows

    assert first["test"] is None  # the baseline
    assert third["test"] is None  # an oracle
    # Averaged over seeds: 1, .5, .3; minus .5: +.5, 0, -.2, of mean .1. Both signs of two numbers:
    # sums .7, .3, -.3, -.7 are all at least .3 away from 0.
    assert second["test"]["difference"] == pytest.approx(0.1)
    assert second["test"]["p"] == 1.0
    assert second["test"]["p_holm"] == 1.0
    assert (second["test"]["wins"], second["test"]["ties"], second["test"]["losses"]) == (1, 1, 1)
    # Deviations .4, -.1, -.3 from the mean: s = sqrt(.26 / 2); (1.96 + .8416) s / sqrt 3.
    assert second["test"]["smallest_detectable"] == pytest.approx(0.5832, abs=1e-4)
    assert second["reward"]["mean"] == pytest.approx(0.6)
    assert second["reward"]["gap_closed"] == pytest.approx(0.5)  # (.6 - .4) / (.8 - .4)
    assert first["reward"] is None
    # Seeds have means .5 and .7: deviation .2 / sqrt 2, t interval .6 -+ 12.706 * .1.
    values = second["retrieval"]["nDCG@10"]
    assert values["mean"] == pytest.approx(0.6)
    assert values["seed_deviation"] == pytest.approx(0.141421, abs=1e-6)
    assert values["seed_low"] == pytest.approx(0.6 - 1.27062, abs=1e-5)
    assert values["seed_high"] == pytest.approx(0.6 + 1.27062, abs=1e-5)
    assert second["relative"] == {"zero_shot": None, "trained": None}
    assert found.table().loc["ppo", "retrieval.nDCG@10.mean"] == pytest.approx(0.6)


def test_relative_change():
    given = (("non-maw-trained", 0.5), ("non-maw-zero-shot", 0.4), ("bm25", 0.6))
    made = comparison({name: [cell([value, value])] for name, value in given}, (2,))
    assert made.rows[2]["relative"] == pytest.approx({"zero_shot": 0.5, "trained": 0.2})


def test_holm_is_over_all_pairs_tested():
    given = (("bm25", 0.0), ("ppo", 0.1), ("grpo", 0.0))
    made = comparison({name: [cell([value] * 5)] for name, value in given}, (5,))
    ppo, grpo = made.compared([("ppo", "bm25"), ("grpo", "bm25")])
    # Of 32 signs, all plus and all minus are as far out: 2 / 32, times 2 tests.
    assert (ppo["p"], ppo["p_holm"], grpo["p_holm"]) == (0.0625, 0.125, 1.0)


def test_grpo_is_tested_against_all_that_choose_depths():
    names = ("bm25", "random", "best-fixed-reward", "grpo")
    results = {
        name: [cell([0.1 * at] * 2, [0.2] * 2 if at else None)] for at, name in enumerate(names)
    }
    made = comparison(results, (2,))
    assert [*made.duels] == [("grpo", "random"), ("grpo", "best-fixed-reward")]
    reward, ndcg = made.duels["grpo", "random"]
    assert (reward["difference"], ndcg["difference"]) == pytest.approx((0, 0.2))
    assert [*made.pairs] == [("grpo", "best-fixed-reward")]


def test_depths_are_ranked_once_for_all_methods(task, tmp_path):
    spec, queries = Spec(replace(SPEC, seed=3)), len(task.table("test"))
    drawn = randomly(task, spec, "test", None)
    # Of drawn depths the expected terms are kept: the means of the table's rows.
    assert drawn.terms["reward"] == pytest.approx(Bandit(task.table("test")).random)
    for depths in (np.full(queries, 2), drawn.depths):  # partly, and wholly, what is known
        found = by_depths(task, SPEC, "test", depths)
        expected, ranking = task.evaluate("test", torch.as_tensor(depths))
        assert found.measures["nDCG@10"].tolist() == expected.per_query["nDCG@10"].tolist()
        assert found.ranking.documents.tolist() == ranking.documents.tolist()
    write_run(tmp_path / "one.trec", task, found, "mine", ranked=1)
    lines = [line.split() for line in (tmp_path / "one.trec").read_text().splitlines()]
    assert [line[0] for line in lines] == list(task.collection.splits["test"].ids)
    assert {(line[3], line[5]) for line in lines} == {("1", "mine")}


def test_a_key_depends_on_all_settings_and_on_what_tables_depend_on():
    task = SimpleNamespace(key="fruit")  # see tests/tables/test_table_files.py
    spec = Spec(learner=GRPOSettings())
    changes = [{"balance": 0.5}, {"seed": 5}, {"fold": 1}, {"num_envs": 512}, {"kl": "k3"}]
    keys = {result_key("grpo", task, changed(spec, **one)) for one in ({}, *changes)}
    assert len(keys | {result_key("ppo", task, spec)}) == 2 + len(changes)
    # Their names are none of it.
    assert result_key("grpo", task, changed(spec, dataset="x", encoder="y", device="auto")) in keys
    task.key = "vegetables"
    assert result_key("grpo", task, spec) not in keys


def test_rows_are_read_where_they_are_and_made_once_where_none_can_be_kept(task, monkeypatch, home):
    titles, calls = {"random": "random", "dense-bm25": "fused"}, list[str]()
    spec = replace(SPEC, reward_weights=(0.0, 0.0, 1.0))

    def run(name, *given):
        calls.append(name)
        return METHODS[name].run(*given)

    counted = {name: METHODS[name]._replace(run=partial(run, name)) for name in titles}
    monkeypatch.setattr(report, "METHODS", counted)
    home.mkdir()
    (home / "rows").touch()  # no folder: as in a cache that is read only
    made = rows_of(task, spec, titles)
    (home / "rows").unlink()
    kept, read = rows_of(task, spec, titles), rows_of(task, spec, titles)
    ndcg = task.table("test").ndcg  # which is all that these weights pay for
    best = {"mean": ndcg.mean(), "oracle": ndcg.max(axis=1).mean()}
    assert {name: made["random"].reward[name] for name in best} == pytest.approx(best, abs=1e-6)
    assert calls == [*titles, *titles]
    for title in titles.values():
        assert made[title].blocks() == kept[title].blocks() == read[title].blocks()
        assert made[title].result.facts == read[title].result.facts

    def refusing(*given):
        calls.append("refused")
        raise InputError("no query has a word")

    counted["bm25"] = METHODS["bm25"]._replace(run=refusing)
    with pytest.raises(InputError, match="no query has a word"):
        rows_of(task, SPEC, {"bm25": "BM25"})
    assert calls.count("refused") == 1


def test_settings_fill_in_what_is_not_told():
    quick, whole = made(CompareSettings, quick=True), made(CompareSettings)
    assert (quick.learner_seeds, quick.tested_against) == ((0,), "standard-attention")
    assert (whole.learner_seeds, whole.tested_against) == ((0, 1, 2), "non-maw-trained")
    assert [one.specs("x")[0].online.timesteps for one in (quick, whole)] == [8_000, 100_000]
    left_out = {*METHODS} - {*quick.method_names}
    assert left_out >= {"non-maw-trained", "maw-single", "grpo-retrieval"}
    assert {METHODS[name].kind for name in quick.method_names} == {
        method.kind for method in METHODS.values()
    }
    every = made(CompareSettings, methods=("all",)).method_names
    assert whole.method_names == every == tuple(METHODS)
    some = made(CompareSettings, methods=("grpo", "bm25"), baseline="ppo")
    assert {*some.method_names} == {"bm25", "ppo", "grpo"}  # the baseline joins
    several = made(CompareSettings, encoder_seeds=(3, 7), text_encoder="minilm", folds=3)
    tasks = [one.task for one in several.specs("x", (0, 2))]
    assert [(one.encoder_seed, one.fold) for one in tasks] == [(3, 0), (3, 2), (7, 0), (7, 2)]
    assert {(one.dataset, one.text_encoder, one.folds) for one in tasks} == {("x", "minilm", 3)}


def test_a_pair_of_methods_by_hand():
    test = {
        "difference": 0.01, "low": -0.002, "high": 0.022, "p": 0.04, "p_holm": 0.08,
        "baseline_mean": 0.4, "smallest_detectable": 0.001, "equivalence_margin": 0.02,
        "wins": 3, "ties": 2, "losses": 1,
    }  # fmt: skip
    table = pair_table({("grpo", "random"): (None, test)}, ("p", "detectable", "within"))
    (line,) = table.splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "grpo minus random", "-", "-", "+0.01000 [-0.00200, +0.02200]", ".0400", "0.25%", "5.00%",
    ]  # fmt: skip


def test_results_of_each_group_and_with_groups_alike():
    scores = {"a": np.array([0.1, 0.3, 0.8]), "b": np.array([0.5, 0.5, 0.0])}
    assert group_table(scores, ["numpy", "numpy", "torch"]).splitlines() == [
        "| method | numpy (2) | torch (1) |  alike |",
        "| ---    |      ---: |      ---: |   ---: |",
        "| a      |    0.2000 |    0.8000 | 0.5000 |",
        "| b      |    0.5000 |    0.0000 | 0.2500 |",
    ]


def test_words_for_numbers():
    assert [p_value(p) for p in (0.00001, 0.0312, 1.0)] == ["<.0001", ".0312", "1.0000"]
    assert [percent(one) for one in (0.0325, None)] == ["+3.2%", "-"]
    assert [digits_for(count) for count in (20, 99, 100, 999, 1000)] == [2, 2, 3, 3, 4]
    assert slug("pydocs") == "pydocs"
    assert slug("/x/a/b").startswith("x-a-b-")
    assert len({slug(name) for name in ("/x/a/b", "/x/a-b", "x-a-b", "/x/a b")}) == 4
    assert markdown(["a", "b"], [["x", "10"]]) == "| a   |    b |\n| --- | ---: |\n| x   |   10 |"
