"""PyTerrier's own pipelines and experiments over a routed encoder; no Java is needed for these."""

import importlib
import sys

import pytest

pt = pytest.importorskip("pyterrier")
pd = pytest.importorskip("pandas")

from ir_measures import RR, nDCG  # noqa: E402

from maw_gym.agents.baselines import fixed_router  # noqa: E402
from maw_gym.errors import InputError  # noqa: E402
from maw_gym.pyterrier import RoutedRetriever  # noqa: E402
from maw_gym.routers.routed_encoder import RoutedEncoder  # noqa: E402
from maw_gym.tables.task import RetrievalTask  # noqa: E402


@pytest.fixture(scope="module")
def routed(task: RetrievalTask) -> RoutedEncoder:
    routed = RoutedEncoder(task.embedder, fixed_router(task, 2), "tiny")
    return routed.index(task.collection.doc_ids, task.collection.doc_texts)


def test_every_query_gets_its_documents_ranked(routed: RoutedEncoder) -> None:
    topics = pd.DataFrame({"qid": ["x", "y"], "query": ["bees and honey", "moon"], "kind": [1, 2]})
    frame = RoutedRetriever(routed, 3).transform(topics)
    assert frame.columns.tolist() == ["qid", "query", "kind", "docno", "score", "rank"]
    assert frame["qid"].tolist() == ["x"] * 3 + ["y"] * 3
    assert frame["rank"].tolist() == [0, 1, 2] * 2
    expected = routed.search("moon", 3)
    assert frame["docno"].tolist()[3:] == [one["id"] for one in expected]
    assert RoutedRetriever(routed, 3, hybrid=True).search("honey")["docno"][0] == "d0"
    nothing = RoutedRetriever(routed).transform(topics[:0])
    assert nothing.columns.tolist() == frame.columns.tolist()


def test_an_experiment_measures_what_the_evaluation_does(
    routed: RoutedEncoder, task: RetrievalTask
) -> None:
    import torch

    queries = task.collection.splits["test"]
    topics = pd.DataFrame({"qid": queries.ids, "query": queries.texts})
    qrels = pd.DataFrame(
        [
            (query_id, doc_id, grade)
            for query_id, grades in zip(queries.ids, queries.relevance, strict=True)
            for doc_id, grade in grades.items()
        ],
        columns=["qid", "docno", "label"],
    )
    retrievers = [RoutedRetriever(routed), RoutedRetriever(routed, 1)]
    table = pt.Experiment(retrievers, topics, qrels, [nDCG @ 10, RR @ 10], names=["all", "first"])
    evaluation, _ = task.evaluate("test", torch.full((len(queries.ids),), 2))
    assert table["nDCG@10"][0] == pytest.approx(evaluation.mean["nDCG@10"])
    assert table["RR@10"][0] == pytest.approx(evaluation.mean["RR@10"])
    assert table["RR@10"][1] <= table["RR@10"][0]


def test_without_pyterrier_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyterrier", None)
    monkeypatch.delitem(sys.modules, "maw_gym.pyterrier")
    message = (
        r"^maw_gym.pyterrier needs PyTerrier; install it by pip install 'maw_gym\[pyterrier\]'$"
    )
    with pytest.raises(InputError, match=message):
        importlib.import_module("maw_gym.pyterrier")
