"""A run as data."""

import gzip

from hostile_run import DEPTHS, IMAGE

import maw_gym


def test_a_run_is_data(hostile, tmp_path):
    with gzip.open(hostile / "per_query.csv.gz", "wt") as file:
        file.write("query_id,method,depth,nDCG@10\n007,BM25,,0.5\n007,GRPO,3,0.75\n")
    run = maw_gym.Run(str(hostile))
    assert repr(run) == f"Run({str(hostile)!r})"
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
    assert maw_gym.Run(tmp_path).curves().empty  # a folder without curves has none
