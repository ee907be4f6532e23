"""A run as data."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hostile_run import DEPTHS, IMAGE, SCRIPT, write_hostile_run

import maw_gym
from maw_gym.errors import InputError
from maw_gym.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = write_hostile_run(tmp_path_factory.mktemp("hostile") / "run")
    with gzip.open(folder / "per_query.csv.gz", "wt") as file:
        file.write("query_id,method,depth,nDCG@10\n007,BM25,,0.5\n007,GRPO,3,0.75\n")
    return maw_gym.Run(str(folder))


def test_settings_metrics_and_collection(run: Run) -> None:
    assert run.settings["reward_weights"] == [0.5, 0.25, 0.25]
    assert run.metrics["reward"] == {"mean": 0.625, "gap_closed": 0.5}
    assert run.collection().splits["test"].ids[0].startswith("q6")
    assert repr(run) == f"Run({str(run.path)!r})"


def test_curves_and_queries_are_tables(run: Run) -> None:
    curves = run.curves()
    assert curves["eval/reward"].to_dict() == {0: 0.25, 10: 0.5, 20: 0.75}
    assert set(curves) == {"eval/reward", "train/" + IMAGE, "time/fps"}
    queries = run.per_query()
    assert queries["query_id"].tolist() == ["007", "007"]
    assert queries.groupby("method")["nDCG@10"].mean().to_dict() == {"BM25": 0.5, "GRPO": 0.75}


def test_it_is_a_retriever(run: Run) -> None:
    found = run.retriever("cpu")
    assert found.router.depths == DEPTHS


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.scalars() == {}
    assert run.curves().empty
    for read, message in (
        (lambda: run.config, "no run with a config.json in '.*'; if it was stopped before its tra"),
        (lambda: run.metrics, "no run with a metrics.json in '.*'; give the folder of a finished"),
        (run.per_query, "no per_query.csv.gz in '.*'; give the folder of a finished run"),
    ):
        with pytest.raises(InputError, match=message):
            read()


@pytest.mark.parametrize(
    "content", [b"", b"a,b", gzip.compress(b""), gzip.compress(b"a" * 99)[:-9]]
)
def test_queries_that_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "per_query.csv.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"per_query.csv.gz is damaged \(.*\); give another run"):
        Run(tmp_path).per_query()


@pytest.mark.parametrize("name", ["config", "metrics"])
def test_a_swarm_of_files_that_are_none(name: str, tmp_path: Path) -> None:
    def refused(content: Any, message: str) -> None:
        path = tmp_path / f"{name}.json"
        path.unlink(missing_ok=True)
        content(path)
        with pytest.raises(InputError, match=message) as caught:
            getattr(Run(tmp_path), name)
        assert "\n" not in str(caught.value)

    refused(lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "is not JSON .recursion")
    refused(lambda path: path.write_text("[1]"), f"is not a run's {name}.json; give")
    refused(lambda path: path.write_text(""), "is not JSON .EOF")
    refused(os.mkfifo, "is not a run's: no file, or too large")
    refused(lambda path: path.symlink_to("/dev/zero"), "is not a run's: no file, or too large")
    # 8 GB, of which nothing is on the disk.
    refused(lambda path: [path.touch(), os.truncate(path, 2**33)], "no file, or too large")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"settings": 3}, "config.json has no settings; give the folder of another run"),
        ({"settings": {"dataset": SCRIPT + "\n"}}, "unknown dataset"),
        ({"settings": {"dataset": 3}}, "config.json does not name a dataset; give another run"),
    ],
)
def test_a_config_without_a_dataset(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        Run(tmp_path).collection()
    assert "\n" not in str(caught.value)
