"""Whole comparisons on a tiny collection."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ir_measures
import pytest
from tiny_collection import PAIRS

from maw_gym.corpora import load_collection
from maw_gym.errors import InputError
from maw_gym.tables.task import load_task
from runners.compare import CompareSettings, main
from runners.experiments.command_line import made
from runners.experiments.methods import Result

METHODS = [
    "bm25", "non-maw-zero-shot", "random", "best-fixed-reward",
    "supervised-rule", "supervised-oracle", "full-ndcg", "ppo", "grpo", "oracle",
]  # fmt: skip
FIGURES = {"reward_curves", "ndcg", "depth_usage", "reward_terms", "differences"}


def compare(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "runners.compare", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with two seeds."""
    logdir = tmp_path_factory.mktemp("runs")
    done = compare(
        "--dataset", tiny_folder, "--encoder", "untrained", "--methods", *METHODS,
        "--baseline", "non-maw-zero-shot", "--seeds", 0, 1, "--timesteps", 2048,
        "--seed-intervals", "--device", "cpu", "--logdir", logdir, "--run-name", "tiny",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "minus non-maw-zero-shot" in done.stdout
    return logdir / "tiny"


def test_leaves_the_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "cells", "config.json", "figures", "per_query.csv", "report.md", "results.json", "runs",
        "training",
    }  # fmt: skip
    assert {path.stem.rsplit("-", 1)[1] for path in (finished / "figures").iterdir()} == FIGURES
    for path in (finished / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    rows = json.loads((finished / "results.json").read_text())
    assert [row["method"] for row in rows] == METHODS


def test_report_says_what_matters(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    assert "Queries: 0 encoder, 12 train, 5 validation, 7 test." in report
    # Test query qI has dI and d(I-1): d16 to d23, of which d16 answers dev query q16.
    assert "1 of 8 relevant test documents (12.5%)" in report
    assert "the rule labels are a CONSTANT: depth 5 for every training query" in report
    assert "95% over seeds" in report
    for picture in (finished / "figures").iterdir():
        assert f"(figures/{picture.name})" in report


def test_results_are_those_of_the_table(finished: Path, tiny_folder: Path) -> None:
    rows = {row["method"]: row for row in json.loads((finished / "results.json").read_text())}
    table = load_task(str(tiny_folder), "untrained", "cpu").table("test")
    reward = 0.3 * table.entropy + 0.3 * table.focus + 0.4 * table.ndcg  # (7, 32)
    for method, mean in (("random", reward.mean()), ("oracle", reward.max(axis=1).mean())):
        assert rows[method]["reward"]["mean"] == pytest.approx(mean, abs=1e-6)
    # The rule's label is depth 5 everywhere, and a classifier can learn nothing else.
    found = list((finished / "cells").glob("*.supervised-rule.*.json"))
    assert len(found) == 2
    for path in found:
        cell = Result.load(path)
        assert cell.facts["label_constant"]
        assert cell.facts["label_most_common"] == 5
        assert (cell.depths == 5).mean() > 0.5
    assert rows["grpo"]["seeds"] == [0, 1]
    assert rows["bm25"]["seeds"] is None


def test_runs_can_be_judged_by_others(finished: Path, tiny_folder: Path) -> None:
    """ir_measures finds in every run file what per_query.csv says."""
    test = load_collection(str(tiny_folder)).splits["test"]
    judged = dict(zip(test.ids, map(dict, test.relevance), strict=True))
    with (finished / "per_query.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs = sorted((finished / "runs").iterdir())
    # 4 methods without seeds and 6 with two.
    assert len(runs) == 4 + 6 * 2
    for path in runs:
        _, method, *seed = path.name.removesuffix(".trec.gz").rsplit(
            ".", 2 if "seed" in path.name else 1
        )
        number = seed[0].removeprefix("seed") if seed else "0"
        own = [row for row in rows if row["method"] == method and row["seed"] == number]
        assert [row["query_id"] for row in own] == list(test.ids)
        run = list(ir_measures.read_trec_run(str(path)))
        found = {
            metric.query_id: metric.value
            for metric in ir_measures.iter_calc([ir_measures.nDCG @ 10], judged, run)
        }
        for row in own:
            assert float(row["nDCG@10"]) == pytest.approx(found.get(row["query_id"], 0), abs=1e-6)


def test_resuming_runs_nothing_again(finished: Path) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    report = (finished / "report.md").read_text()
    lost = next(path for path in cells if ".oracle." in path.name)
    lost.unlink()
    del cells[lost]
    again = compare("--resume", finished)
    assert again.returncode == 0, again.stderr
    assert [
        line for line in again.stderr.splitlines() if line.startswith("tiny.") or ".orac" in line
    ]
    assert lost.exists()
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    assert (finished / "report.md").read_text() == report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timesteps", "4096"], "--timesteps 4096 conflicts with the run's own 2048"),
        (["--seeds", "0", "1", "2"], "--seeds"),
    ],
)
def test_resuming_another_configuration(finished: Path, arguments: list[str], message: str) -> None:
    done = compare("--resume", finished, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def whole_collection(folder: Path, tiny_folder: Path, queries: int) -> Path:
    """The tiny collection without subsets: some of its queries, judged in one file."""
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copy(tiny_folder / name, folder / name)
    lines = "".join(f"q{row}\td{row}\t1\n" for row in range(queries))
    (folder / "qrels" / "all.tsv").write_text(lines)
    return folder


def in_process(folder: Path, logdir: Path, **more: object) -> None:
    main(
        made(
            CompareSettings,
            datasets=(str(folder),),
            methods=("non-maw-zero-shot", "best-fixed-reward"),
            baseline="non-maw-zero-shot",
            encoder="untrained",
            device="cpu",
            logdir=logdir,
            run_name="folds",
            **more,  # type: ignore[arg-type]
        )
    )


def test_collections_without_subsets_are_cross_validated(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_collection(tmp_path / "whole", tiny_folder, len(PAIRS))
    in_process(folder, tmp_path)
    run = tmp_path / "folds"
    assert "All queries are cross-validated in 5 folds" in (run / "report.md").read_text()
    with (run / "per_query.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "best-fixed-reward"]
    # Every query is tested exactly once, 24 in 5 folds: 4 of 5 and one of 4.
    assert sorted(row["query_id"] for row in rows) == sorted(f"q{row}" for row in range(24))
    sizes = [sum(row["fold"] == str(fold) for row in rows) for fold in range(5)]
    assert sorted(sizes) == [4, 5, 5, 5, 5]
    (trec,) = (run / "runs").glob("*best-fixed-reward.trec.gz")
    with gzip.open(trec, "rt") as lines:
        assert {line.split()[0] for line in lines} == {f"q{row}" for row in range(24)}
    assert "best-fixed-reward" in capsys.readouterr().out


def test_too_few_queries_for_folds(tiny_folder: Path, tmp_path: Path) -> None:
    folder = whole_collection(tmp_path / "few", tiny_folder, 9)
    with pytest.raises(InputError, match="9 judged queries, too few for 5 folds of 2 or more"):
        in_process(folder, tmp_path)
    assert not (tmp_path / "folds").exists()


def test_no_training_queries(tiny_folder: Path, tmp_path: Path) -> None:
    folder = whole_collection(tmp_path / "test-only", tiny_folder, 9)
    (folder / "qrels" / "all.tsv").rename(folder / "qrels" / "test.tsv")
    with pytest.raises(InputError, match="has 0 train queries; a comparison needs 2 or more"):
        in_process(folder, tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"encoder": "nowhere.safetensors"}, "unknown encoder 'nowhere.safetensors'"),
        ({"datasets": ("nowhere",)}, "unknown dataset 'nowhere'"),
        ({"device": "abacus"}, "device 'abacus' is not available"),
    ],
)
def test_mistakes_are_found_before_any_work(
    more: dict[str, object], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    told: dict[str, object] = {"datasets": (str(tiny_folder),), "logdir": tmp_path} | more
    with pytest.raises(InputError, match=message):
        main(made(CompareSettings, **told))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
