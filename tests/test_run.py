"""A run as data."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_run import DEPTHS, IMAGE, SCRIPT, write_hostile_run

import maw_gym
from maw_gym.errors import InputError
from maw_gym.run import Run


def test_a_run_is_data(tmp_path: Path) -> None:
    folder = write_hostile_run(tmp_path / "run")
    with gzip.open(folder / "per_query.csv.gz", "wt") as file:
        file.write("query_id,method,depth,nDCG@10\n007,BM25,,0.5\n007,GRPO,3,0.75\n")
    run = maw_gym.Run(str(folder))
    assert repr(run) == f"Run({str(folder)!r})"
    assert run.settings["reward_weights"] == [0.5, 0.25, 0.25]
    assert run.metrics["reward"] == {"mean": 0.625, "gap_closed": 0.5}
    assert run.collection().splits["test"].ids[0].startswith("q6")
    curves = run.curves()
    assert curves["eval/reward"].to_dict() == {0: 0.25, 10: 0.5, 20: 0.75}
    assert set(curves) == {"eval/reward", "train/" + IMAGE, "time/fps"}
    queries = run.per_query()
    assert queries["query_id"].tolist() == ["007", "007"]
    assert queries.groupby("method")["nDCG@10"].mean().to_dict() == {"BM25": 0.5, "GRPO": 0.75}
    assert run.retriever("cpu").router.depths == DEPTHS


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder 'missing'; give the folder of a training"):
        Run("missing")
    run = Run(tmp_path)
    assert run.scalars() == {}
    assert run.curves().empty
    for name, read in (
        ("config.json", lambda: run.config),
        ("metrics.json", lambda: run.metrics),
        ("per_query.csv.gz", run.per_query),
    ):
        with pytest.raises(
            InputError, match=f"no run with a {name} in '.*'; give the folder of a finished run"
        ):
            read()


@pytest.mark.parametrize(
    "content", [b"", b"a,b", gzip.compress(b""), gzip.compress(b"a" * 99)[:-9]]
)
def test_queries_that_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "per_query.csv.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"per_query.csv.gz is damaged \(.*\); give another run"):
        Run(tmp_path).per_query()


@pytest.mark.parametrize("name", ["config", "metrics"])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "is not JSON .recursion"),
        (lambda path: path.write_text("[1]"), "is not a run's .*.json; give"),
        (lambda path: path.write_text(""), "is not JSON .EOF"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        # 8 GB, of which nothing is on the disk.
        (lambda path: [path.touch(), os.truncate(path, 2**33)], "has 8589934592 bytes"),
    ],
)
def test_files_that_are_none(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / f"{name}.json")
    with pytest.raises(InputError, match=message) as caught:
        getattr(Run(tmp_path), name)
    assert "\n" not in str(caught.value)


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
