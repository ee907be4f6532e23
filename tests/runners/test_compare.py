"""Whole comparisons on a tiny collection."""

import csv
import gzip
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import ir_measures
import numpy as np
import psutil
import pytest

from maw_gym.corpora import load_collection
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.runners.compare import CompareSettings, compare_dataset, main
from maw_gym.runners.experiments.command_line import changed, made
from maw_gym.runners.experiments.comparison import compare, run_side_by_side
from maw_gym.runners.experiments.methods import chosen_methods
from maw_gym.runners.experiments.report import write_csv
from maw_gym.runners.experiments.runs import run_main
from maw_gym.runners.experiments.settings import OnlineSettings, Spec, TaskSettings

METHODS = [
    "bm25", "non-maw-zero-shot", "random", "best-fixed-reward",
    "supervised-rule", "full-ndcg-retrieval", "ppo", "grpo", "oracle",
]  # fmt: skip
FIGURES = {"reward_curves", "ndcg", "depth_usage", "reward_terms"}


def command(*arguments):
    run_main(CompareSettings, main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A comparison with two seeds."""
    logdir = tmp_path_factory.mktemp("runs")
    command(
        "--dataset", tiny_folder, "--encoder", "untrained", "--methods", *METHODS,
        "--baseline", "non-maw-zero-shot", "--seeds", 0, 1, "--timesteps", 512,
        "--seed-intervals", "--device", "cpu", "--logdir", logdir, "--run-name", "tiny",
    )  # fmt: skip
    return logdir / "tiny"


def per_query(run, method, seed="0"):
    with (run / "per_query.csv").open(newline="") as file:
        return [r for r in csv.DictReader(file) if r["method"] == method and r["seed"] == seed]


def test_what_it_leaves(finished):
    names = "cells config.json figures per_query.csv report.md results.json runs training"
    assert {path.name for path in finished.iterdir()} == {*names.split()}
    pictures, report = [*(finished / "figures").iterdir()], (finished / "report.md").read_text()
    assert {path.stem.rsplit("-", 1)[1] for path in pictures} == FIGURES
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"(figures/{path.name})" in report
    rows = json.loads((finished / "results.json").read_text())
    assert [row["method"] for row in rows] == METHODS
    assert [row["seeds"] for row in rows if row["method"] in ("bm25", "grpo")] == [None, [0, 1]]
    assert f"`maw-gym compare --config {finished / 'config.json'}` runs it again." in report
    assert "Queries: 0 encoder, 12 train, 5 validation, 7 test." in report
    # Test query qI has dI and d(I-1): d16 to d23, of which d16 answers dev query q16.
    assert "1 of 8 relevant test documents (12.5%)" in report
    assert "the rule labels are a CONSTANT: depth 5 for every training query" in report
    for title in ("minus non-maw-zero-shot", "95% over seeds", "gap closed", "what it is "):
        assert f"| {title}" in report.replace("|  ", "| ").replace("  ", " ")
    # Seven queries: a third digit would be noise.
    (line,) = (line for line in report.splitlines() if line.startswith("- Highest nDCG@10"))
    assert len(line.rpartition(".")[0].rpartition(".")[2]) == 2


def test_runs_can_be_judged_by_others(finished, tiny_folder):
    """ir_measures finds in every run file what per_query.csv says."""
    test = load_collection(str(tiny_folder)).splits["test"]
    judged = dict(zip(test.ids, map(dict, test.relevance), strict=True))
    runs = sorted((finished / "runs").iterdir())
    assert len(runs) == 4 + 5 * 2  # 4 methods without seeds and 5 with two
    for path in runs:
        _, method, *seed = path.name.removesuffix(".trec.gz").split(".")
        own = per_query(finished, method, seed[0].removeprefix("seed") if seed else "0")
        assert [row["query_id"] for row in own] == list(test.ids)
        run = list(ir_measures.read_trec_run(str(path)))
        measured = ir_measures.iter_calc([ir_measures.nDCG @ 10], judged, run)
        found = {metric.query_id: metric.value for metric in measured}
        for row in own:
            assert float(row["nDCG@10"]) == pytest.approx(found.get(row["query_id"], 0), abs=1e-6)


def test_resuming_runs_nothing_again(finished, capsys):
    cells = {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    report = (finished / "report.md").read_text()
    lost = next(path for path in cells if ".oracle." in path.name)
    lost.unlink()
    del cells[lost]
    command("--resume", finished)
    told = capsys.readouterr()
    assert [line for line in told.err.splitlines() if ".oracle" in line or "seed" in line] == [
        f"{lost.name.partition('.oracle')[0]}.oracle ..."
    ]
    assert "minus non-maw-zero-shot" in told.out
    assert lost.exists()
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert (finished / "report.md").read_text() == report
    with pytest.raises(SystemExit) as stopped:
        command("--resume", finished, "--timesteps", 4096)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --timesteps 4096 conflicts with the run's own 512")


def settings_of(folder, **more):
    """A comparison that trains nothing."""
    methods = {"methods": ("best-fixed-reward", "random"), "baseline": "standard-attention"}
    where = {"datasets": (str(folder),), "encoder": "untrained", "device": "cpu"}
    return made(CompareSettings, **methods, **where, **more)


def test_folds_side_by_side_have_the_results_of_one_after_the_other(tiny_folder, tmp_path):
    """All queries of a collection without subsets are cross-validated."""
    folder, asked = shutil.copytree(tiny_folder, tmp_path / "whole"), [f"q{n}" for n in range(24)]
    shutil.rmtree(folder / "qrels")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "all.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in range(24)))
    settings, run = settings_of(folder, logdir=tmp_path, run_name="folds"), tmp_path / "folds"
    main(changed(settings, jobs=2))
    assert "All queries are cross-validated in 5 folds" in (run / "report.md").read_text()
    # Every query is tested exactly once, 24 in 5 folds: 4 of 5 and one of 4.
    rows = per_query(run, "best-fixed-reward")
    assert sorted(row["query_id"] for row in rows) == sorted(asked)
    assert sorted(Counter(row["fold"] for row in rows).values()) == [4, 5, 5, 5, 5]
    (trec,) = (run / "runs").glob("*best-fixed-reward.trec.gz")
    with gzip.open(trec, "rt") as lines:
        assert {line.split()[0] for line in lines} == {*asked}
    one = compare_dataset(settings, str(folder), (0, 1, 2, 3, 4), tmp_path / "one")
    write_csv(tmp_path / "one.csv", one.per_query)
    assert (tmp_path / "one.csv").read_bytes() == (run / "per_query.csv").read_bytes()


def test_processes_end_with_the_one_that_asked_for_them(tmp_path):
    work = f"import time; open({str(tmp_path / 'begun')!r}, 'x'); time.sleep(600)"
    start = multiprocessing.get_context("spawn").Process
    asks = start(target=run_side_by_side, args=(exec, [(work,)], 1))
    asks.start()
    while not (tmp_path / "begun").exists():
        assert asks.is_alive()
        time.sleep(0.1)
    asked = psutil.Process(asks.pid).children()
    assert len(asked) == 1
    asks.kill()
    _, alive = psutil.wait_procs(asked, timeout=60)
    assert alive == []


def test_what_goes_wrong_in_another_process_is_raised_here():
    with pytest.raises(InputError, match="unknown method 'grp': did you mean 'grpo'"):
        run_side_by_side(chosen_methods, [(["grp"],)], 1)
    with pytest.raises(InputError, match=r"^one of 1 processes was ended from outside, perhaps "):
        run_side_by_side(os._exit, [(9,)], 1)


class Always:
    """Depth 1, whatever it sees."""

    def __init__(self, task, spec, log):
        assert spec.online.timesteps == 64
        assert log.folder.is_dir()

    def predict(self, observation, deterministic):
        assert observation.shape[1] == 2 * 4  # entropy and focus of every depth
        return np.ones(len(observation), int), None


def test_learners_of_ones_own_enter_a_comparison(task, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    spec, a2c = Spec(online=OnlineSettings(64)), "examples.own_learner:a2c"
    given = [Always, a2c, "best-fixed-reward"]
    found = compare(given, task, seeds=(0, 1), spec=spec, folder=tmp_path)
    assert [*found.results] == ["standard-attention", "best-fixed-reward", "Always", "a2c"]
    always = found.results["Always"][1].depths
    assert always.tolist() == [1] * len(found.query_ids)
    table, rewards = found.table(), Bandit(task.table("test")).rewards
    assert table.loc["a2c", "about"] == "A2C of Stable-Baselines3"
    assert table.loc["Always", "reward.mean"] == pytest.approx(rewards[:, 1].mean())
    # What is kept is read again; another source is another learner.
    assert compare(given, task, seeds=(0, 1), spec=spec, folder=tmp_path).table().equals(table)


def test_a_result_is_never_beside_the_ranking_of_another(task, tmp_path):
    def ranked(weights):
        spec = Spec(TaskSettings(reward_weights=weights))
        compare(["oracle"], task, spec=spec, folder=tmp_path)
        (found,) = (tmp_path / "runs").glob("*.oracle.trec.gz")
        return gzip.decompress(found.read_bytes())

    first = ranked((1, 0, 0))
    assert ranked((0, 1, 0)) != first
    assert ranked((1, 0, 0)) == first
